"""Generates with the plan in this folder: `python generate.py CHECKPOINT --prompt "Once upon a time"`.

Needs torch, transformers, accelerate and safetensors, and nothing of the planner that wrote it.
Exit status: 0 done, 3 the checkpoint does not fit the plan, 4 out of memory.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

# Without it the caching allocator fragments as the KV cache grows. Must be set before torch is imported.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import transformers
from accelerate import dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    add_hook_to_module,
    attach_align_device_hook_on_blocks,
    remove_hook_from_module,
)
from accelerate.utils import OffloadedWeightsLoader

FOLDER = Path(__file__).resolve().parent
PLAN = json.loads((FOLDER / "plan.json").read_text())
DEVICE_MAP = json.loads((FOLDER / "device_map.json").read_text())
AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "masked-lm": "AutoModelForMaskedLM",
}
MAIN: Any = "cpu" if PLAN["main_device"] == "cpu" else int(PLAN["main_device"].removeprefix("gpu:"))
PAGE = 4096


def load(checkpoint: str, offload_folder: str) -> Any:
    """The model, every module where the plan has it."""
    model_class = getattr(transformers, AUTO_CLASSES[PLAN["model"]["auto_class"]])
    model, info = model_class.from_pretrained(
        checkpoint,
        dtype=getattr(torch, PLAN["workload"]["dtype"]),
        device_map=DEVICE_MAP,
        offload_folder=offload_folder,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    # from_pretrained fills what a checkpoint lacks, or has in another shape, with random numbers and goes on.
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            names = ", ".join(sorted(str(name) for name in info[problem])[:5])
            stop(f"{checkpoint} is not a checkpoint of {PLAN['model']['name']}: {problem} {names}", 3)
    runs_on_cpu = {p["module"] for p in PLAN["placements"] if p["executes"] == "cpu" and MAIN != "cpu"}
    on_cpu = {
        entry for entry in DEVICE_MAP if any(m == entry or m.startswith(f"{entry}.") for m in runs_on_cpu)
    }
    streamed = [name for name, place in DEVICE_MAP.items() if place == "cpu" and MAIN != "cpu"]
    if on_cpu or (streamed and PLAN["host_copies"] == "pinned"):
        dispatch_again(model, on_cpu)
    for name, device in PLAN["split_blocks"].items():
        move_scratch(model.get_submodule(name), main_or(device))
    return model.eval()


def move_scratch(block: Any, device: Any) -> None:
    """Bring buffers that no entry of the map covers to where their block runs; they were left on the CPU."""
    for module in block.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type != "meta" and not hasattr(module, "_hf_hook"):
                module.register_buffer(name, buffer.to(device), persistent=False)


def dispatch_again(model: Any, on_cpu: set[str]) -> None:
    """Replace from_pretrained's hooks: host copies pinned, and chosen modules executing on the CPU."""
    index = offload_index(model)
    remove_hook_from_module(model, recurse=True)
    state = {}
    for entry, place in DEVICE_MAP.items():
        if place == "cpu" and entry not in on_cpu:
            module = model.get_submodule(entry)
            for name in {**dict(module.named_parameters()), **dict(module.named_buffers())}:
                owner, _, leaf = f"{entry}.{name}".rpartition(".")
                tensor = getattr(model.get_submodule(owner), leaf)
                if isinstance(tensor, torch.nn.Parameter) and PLAN["host_copies"] == "pinned":
                    tensor.data = page_locked(tensor.data)
                state[f"{entry}.{name}"] = tensor.data
    if not on_cpu:
        dispatch_model(
            model,
            DEVICE_MAP,
            main_device=MAIN,
            state_dict=state,
            offload_index=index or None,
            skip_keys=model._skip_keys_device_placement,
        )
        return
    places = {name: "cpu" if name in on_cpu else main_or(place) for name, place in DEVICE_MAP.items()}
    attach_align_device_hook_on_blocks(
        model,
        execution_device={**places, "": MAIN},
        offload={name: place in ("cpu", "disk") and name not in on_cpu for name, place in DEVICE_MAP.items()},
        weights_map=OffloadedWeightsLoader(state_dict=state, index=index, device="cpu"),
        skip_keys=model._skip_keys_device_placement,
    )
    # A block whose parts are listed one by one has no hook of its own to bring its input from the CPU.
    for name, device in PLAN["split_blocks"].items():
        hook = AlignDevicesHook(execution_device=main_or(device), skip_keys=model._skip_keys_device_placement)
        add_hook_to_module(model.get_submodule(name), hook, append=True)


def main_or(place: str | int) -> Any:
    """Where a module runs: on its own GPU, or on the main device when its weights come from elsewhere."""
    if isinstance(place, str) and place.startswith("gpu:"):
        return int(place.removeprefix("gpu:"))
    return MAIN if place in ("cpu", "disk") else place


def offload_index(model: Any) -> dict[str, Any]:
    """Where from_pretrained found the weights that stay on disk."""
    for module in model.modules():
        for hook in hooks_of(module):
            if getattr(hook, "weights_map", None) is not None:
                index: dict[str, Any] = hook.weights_map.dataset.index
                return {name: entry for name, entry in index.items() if "safetensors_file" in entry}
    return {}


def hooks_of(module: Any) -> Iterator[Any]:
    """The Accelerate hooks on one module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", [hook] if hook is not None else [])


def page_locked(tensor: torch.Tensor) -> torch.Tensor:
    """A page-locked copy of exactly this size.

    torch's own pin_memory() rounds each allocation up to a power of two, which costs up to as much
    again. Small tensors may have that; a large one gets whole pages of its own, registered with CUDA.
    """
    if not torch.cuda.is_available() or tensor.is_pinned():
        return tensor
    if tensor.nbytes < 2**20:
        return tensor.pin_memory()
    pages = -(-tensor.nbytes // PAGE) * PAGE
    buffer = torch.empty(pages + PAGE, dtype=torch.uint8)
    start = -buffer.data_ptr() % PAGE
    locked = buffer[start : start + pages]
    if int(torch.cuda.cudart().cudaHostRegister(locked.data_ptr(), pages, 0)) != 0:
        return tensor.pin_memory()
    return locked[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


class Clock(transformers.LogitsProcessor):
    """Notes when each token's logits are there, and keeps them if asked; changes nothing."""

    def __init__(self, *, keep: bool) -> None:
        self.times: list[float] = []
        self.logits: list[torch.Tensor] = []
        self.keep = keep

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        synchronize()
        self.times.append(time.perf_counter())
        if self.keep:
            self.logits.append(scores.float().cpu())
        return scores


def synchronize() -> None:
    """Wait for every GPU."""
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)


def inputs_for(args: argparse.Namespace, model: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Token ids on the main device, and the tokenizer when there are words to decode."""
    if args.input_ids:
        rows = torch.tensor(json.loads(args.input_ids.read_text()))
        return {"input_ids": rows.to(MAIN), "attention_mask": torch.ones_like(rows).to(MAIN)}, None
    if args.prompt_tokens:
        rows = torch.randint(
            3,
            model.config.get_text_config().vocab_size,
            (args.batch_size, args.prompt_tokens),
            generator=torch.Generator().manual_seed(args.seed),
        )
        return {"input_ids": rows.to(MAIN), "attention_mask": torch.ones_like(rows).to(MAIN)}, None
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.checkpoint)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    # A decoder continues from the right end, so the padding goes to the left.
    tokenizer.padding_side = "right" if model.config.is_encoder_decoder else "left"
    prompts = args.prompt or ["The license"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    return {name: batch[name].to(MAIN) for name in ("input_ids", "attention_mask")}, tokenizer


@torch.no_grad()
def run(model: Any, inputs: dict[str, torch.Tensor], args: argparse.Namespace, clock: Clock) -> torch.Tensor:
    """New token ids; for an encoder, the likeliest token at each place."""
    if PLAN["model"]["auto_class"] == "masked-lm":
        logits = model(**inputs).logits
        return clock(inputs["input_ids"], logits).argmax(-1).cpu()
    options: dict[str, Any] = {}
    if PLAN["kv_cache"] == "offloaded":
        options["cache_implementation"] = "offloaded"
    if args.ignore_eos:
        model.generation_config.eos_token_id = None
    pad = model.generation_config.pad_token_id
    model.generation_config.pad_token_id = pad if pad is not None else 0
    output = model.generate(
        **inputs,
        max_new_tokens=args.new_tokens,
        do_sample=False,
        num_beams=1,
        logits_processor=transformers.LogitsProcessorList([clock]),
        **options,
    )
    given = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    new: torch.Tensor = output[:, given:].cpu()
    return new


def report(model: Any, tokens: torch.Tensor, clock: Clock, start: float, load_s: float) -> dict[str, Any]:
    """What was measured."""
    times = [start, *clock.times]
    steps = [later - earlier for earlier, later in pairwise(times)]
    return {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "load_s": load_s,
        "prefill_s": steps[0],
        "decode_s": steps[1:],
        "tokens": tokens.tolist(),
        "gpu_peak_allocated_bytes": [
            torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())
        ],
        "gpu_peak_reserved_bytes": [
            torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count())
        ],
        "host_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device_map": {name: str(place) for name, place in getattr(model, "hf_device_map", {}).items()},
    }


def stop(sentence: str, status: int) -> None:
    """End with a sentence."""
    print(f"generate.py: {sentence}", file=sys.stderr)
    raise SystemExit(status)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder or hub id")
    parser.add_argument("--prompt", action="append", help="text; repeat for a batch")
    parser.add_argument("--prompt-tokens", type=int, help="random token ids instead of text")
    parser.add_argument("--input-ids", type=Path, help="JSON rows of token ids instead of text")
    parser.add_argument("--batch-size", type=int, default=PLAN["workload"]["batch_size"])
    parser.add_argument("--new-tokens", type=int, default=PLAN["workload"]["new_tokens"])
    parser.add_argument("--ignore-eos", action="store_true", help="always generate all new tokens")
    parser.add_argument("--repeat", type=int, default=1, help="run so many times and report the last")
    parser.add_argument("--seed", type=int, default=0, help="of the random token ids")
    parser.add_argument("--report", type=Path, help="write measurements as JSON")
    parser.add_argument("--logits", type=Path, help="write float32 logits of every step as safetensors")
    return parser.parse_args()


def main() -> None:
    """Load, generate, print."""
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="offload-") as offload_folder:
        start = time.perf_counter()
        model = load(args.checkpoint, offload_folder)
        load_s = time.perf_counter() - start
        inputs, tokenizer = inputs_for(args, model)
        try:
            for _ in range(args.repeat):
                clock = Clock(keep=args.logits is not None)
                synchronize()
                start = time.perf_counter()
                tokens = run(model, inputs, args, clock)
        except torch.OutOfMemoryError as error:
            stop(f"out of GPU memory at batch {inputs['input_ids'].shape[0]}: {error}", 4)
    measured = report(model, tokens, clock, start, load_s)
    if args.report:
        args.report.write_text(json.dumps(measured, indent=1))
    if args.logits:
        from safetensors.torch import save_file

        save_file({"logits": torch.stack(clock.logits)}, args.logits)
    for row in tokens:
        print(tokenizer.decode(row, skip_special_tokens=True) if tokenizer else row.tolist())


if __name__ == "__main__":
    main()
