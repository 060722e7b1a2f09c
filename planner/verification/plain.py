"""Generates with transformers alone, as the reference for a plan: `python -m planner.verification.plain`.

A child process of `planner verify`. With `--device-map` it loads the model with the emitted device map, to
check that the map works without the emitted script.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

_AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "masked-lm": "AutoModelForMaskedLM",
}
_WORDS = "The license"


class _Recorder(transformers.LogitsProcessor):
    """Records the logits of each step and the time at which they were complete."""

    def __init__(self) -> None:
        self.logits: list[torch.Tensor] = []
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logits.append(scores.float().cpu())
        self.times.append(time.perf_counter())
        return scores


def main() -> None:
    """Load, generate, write `report.json`, `input_ids.json` and `logits.safetensors`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--auto-class", required=True, choices=_AUTO_CLASSES)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "auto"), default="cpu")
    parser.add_argument("--device-map", type=Path)
    parser.add_argument("--input-ids", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="offload-") as offload_folder:
        start = time.perf_counter()
        model = _load(args, offload_folder)
        load_s = time.perf_counter() - start
        rows = _input_ids(args, model).to(model.device if args.device_map is None else _first(model))
        recorder = _Recorder()
        start = time.perf_counter()
        tokens = _generate(model, rows, args, recorder)
    times = [start, *recorder.times]
    report = {
        "load_s": load_s,
        "prefill_s": times[1] - times[0],
        "decode_s": [later - earlier for earlier, later in pairwise(times[1:])],
        "tokens": tokens.tolist(),
        "host_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    (args.out / "report.json").write_text(json.dumps(report))
    (args.out / "input_ids.json").write_text(json.dumps(rows.tolist()))
    save_file({"logits": torch.stack(recorder.logits)}, args.out / "logits.safetensors")


def _load(args: argparse.Namespace, offload_folder: str) -> Any:
    options: dict[str, Any] = {}
    if args.device_map is not None:
        options = {"device_map": json.loads(args.device_map.read_text()), "offload_folder": offload_folder}
    model_class = getattr(transformers, _AUTO_CLASSES[args.auto_class])
    model, info = model_class.from_pretrained(
        args.checkpoint,
        dtype=getattr(torch, args.dtype),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    # transformers initialises missing weights at random, so the outputs could not be compared.
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            names = ", ".join(sorted(str(name) for name in info[problem])[:5])
            print(f"{args.checkpoint} does not fit its configuration: {problem} {names}", file=sys.stderr)
            raise SystemExit(3)
    if args.device_map is None and args.device == "auto" and _fits_a_gpu(model):
        model = model.to("cuda")
    return model.eval()


def _fits_a_gpu(model: Any) -> bool:
    """Whether the first GPU can hold the model plus 25 % for the KV cache and activations."""
    if not torch.cuda.is_available():
        return False
    free_bytes, _ = torch.cuda.mem_get_info(0)
    return bool(model.get_memory_footprint() * 1.25 < free_bytes)


def _first(model: Any) -> Any:
    """The device for the inputs of a model with a device map."""
    places = getattr(model, "hf_device_map", {"": model.device})
    gpus = [place for place in places.values() if place not in ("cpu", "disk")]
    return gpus[0] if gpus else "cpu"


def _input_ids(args: argparse.Namespace, model: Any) -> torch.Tensor:
    if args.input_ids is not None:
        return torch.tensor(json.loads(args.input_ids.read_text()))
    if (Path(args.checkpoint) / "tokenizer_config.json").exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.checkpoint)
        words: list[int] = tokenizer(_WORDS)["input_ids"]
        return torch.tensor([words] * args.batch_size)
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (args.batch_size, args.prompt_tokens), generator=generator)


@torch.no_grad()
def _generate(model: Any, rows: torch.Tensor, args: argparse.Namespace, recorder: _Recorder) -> torch.Tensor:
    mask = torch.ones_like(rows)
    if args.auto_class == "masked-lm":
        return recorder(rows, model(input_ids=rows, attention_mask=mask).logits).argmax(-1).cpu()
    pad = model.generation_config.pad_token_id
    model.generation_config.pad_token_id = pad if pad is not None else 0
    output = model.generate(
        input_ids=rows,
        attention_mask=mask,
        max_new_tokens=args.new_tokens,
        do_sample=False,
        num_beams=1,
        logits_processor=transformers.LogitsProcessorList([recorder]),
    )
    num_given = 1 if model.config.is_encoder_decoder else rows.shape[1]
    new_tokens: torch.Tensor = output[:, num_given:].cpu()
    return new_tokens


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
