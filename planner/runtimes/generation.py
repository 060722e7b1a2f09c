"""Shared by the generate.py of every plan: command line, ranks, inputs, time measurement and the report.

Needs torch and transformers, and nothing of the planner that wrote it.
Exit status: 0 done, 3 the checkpoint does not fit the plan, 4 out of memory or of GPUs.
"""

import argparse
import contextlib
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

# First: it configures torch's allocator. Scripts import these names from this module.
from ranks import (  # noqa: F401
    DEVICE,
    EXECUTION,
    FOLDER,
    LOCAL_RANK,
    NUM_RANKS,
    NUM_STREAMS,
    ON_CPU,
    PLAN,
    RANK,
    gathered,
    gpus,
    keep_host_pages,
    launch_ranks,
    read_json,
    share,
    stop,
    synchronize,
)

# isort: split
import torch
import transformers
from safetensors import SafetensorError

AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "masked-lm": "AutoModelForMaskedLM",
}
DTYPE: torch.dtype = getattr(torch, PLAN["workload"]["dtype"])


class Clock(transformers.LogitsProcessor):
    """Records the time of each token's logits, and the logits too if asked; it does not change them."""

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


def auto_class() -> Any:
    """The transformers class that loads the model."""
    return getattr(transformers, AUTO_CLASSES[PLAN["model"]["auto_class"]])


def check_loaded(info: dict[str, Any], checkpoint: str) -> None:
    """Stop if a tensor is missing or has another shape, where from_pretrained uses random numbers."""
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            names = ", ".join(sorted(str(name) for name in info[problem])[:5])
            stop(f"{checkpoint} is not a checkpoint of {PLAN['model']['name']}: {problem} {names}", 3)


def check_model(checkpoint: str) -> None:
    """Stop if the checkpoint's configuration is that of another model than the plan's."""
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint)
        with torch.device("meta"):
            model = auto_class().from_config(config)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        stop(f"{checkpoint} is no checkpoint that transformers knows: {reason}", 3)
    given = (type(model).__name__, sum(parameter.numel() for parameter in model.parameters()))
    planned = (PLAN["model"]["model_class"], PLAN["model"]["num_parameters"])
    if given != planned:
        words = [f"{name} of {count:,} parameters" for name, count in (given, planned)]
        stop(f"{checkpoint} is a {words[0]}, and the plan is of {PLAN['model']['name']}, a {words[1]}", 3)


@contextlib.contextmanager
def in_words(checkpoint: str) -> Iterator[None]:
    """Turn errors that a user can correct into a message and an exit status: unreadable files, memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        stop(f"out of GPU memory: {error}", 4)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (OSError, SafetensorError) as error:
        stop(f"cannot load {checkpoint}: {' '.join(str(error).split())}", 3)


def inputs_for(args: argparse.Namespace, model: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Token ids and mask of the whole batch, and the tokenizer; None for it when token ids were given."""
    if args.input_ids:
        rows = torch.tensor(json.loads(args.input_ids.read_text()))
    elif args.prompt_tokens:
        # Kernel injection runs with transformers 4.43, whose configurations lack get_text_config.
        config = getattr(model.config, "get_text_config", lambda: model.config)()
        generator = torch.Generator().manual_seed(args.seed)
        rows = torch.randint(3, config.vocab_size, (args.batch_size, args.prompt_tokens), generator=generator)
    if args.input_ids or args.prompt_tokens:
        return {"input_ids": rows, "attention_mask": torch.ones_like(rows)}, None
    tokenizer = tokenizer_for(args.checkpoint, model)
    batch = tokenizer(args.prompt or ["The license"], return_tensors="pt", padding=True)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}, tokenizer


def tokenizer_for(checkpoint: str, model: Any) -> Any:
    """The checkpoint's tokenizer, configured to pad batches."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    # A decoder continues at the right end, so the padding is on the left.
    tokenizer.padding_side = "right" if model.config.is_encoder_decoder else "left"
    return tokenizer


@torch.no_grad()
def run(model: Any, inputs: dict[str, torch.Tensor], args: argparse.Namespace, clock: Clock) -> torch.Tensor:
    """New token ids, [sequences, new tokens]; of an encoder the likeliest token at each position.

    Args:
        model: the model.
        inputs: token ids and mask of this rank's sequences, [sequences, tokens].
        args: the command line.
        clock: records the time of every step.
    """
    rows, prompt = inputs["input_ids"].shape
    keep_host_pages(NUM_STREAMS * rows * (prompt + args.new_tokens))
    if PLAN["model"]["auto_class"] == "masked-lm":
        logits = model(**inputs).logits
        return clock(inputs["input_ids"], logits).argmax(-1).cpu()
    options: dict[str, Any] = {}
    if EXECUTION["kv_cache"] == "offloaded" and not ON_CPU:
        options["cache_implementation"] = "offloaded"
    if NUM_STREAMS > 1:
        # Ranks whose sequences end early continue to step until all ranks have ended.
        options["synced_gpus"] = True
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
    num_given = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    new_ids: torch.Tensor = output[:, num_given:].cpu()
    return new_ids


def measured(clock: Clock, start: float, load_s: float) -> dict[str, Any]:
    """The measurements of this rank, as values of the report.

    Args:
        clock: has the time of every step.
        start: time at which generation started, of the same clock.
        load_s: seconds that loading took.
    """
    steps = [later - earlier for earlier, later in pairwise([start, *clock.times])]
    return {
        "load_s": load_s,
        "prefill_s": steps[0],
        "decode_s": steps[1:],
        "devices": [torch.cuda.get_device_name(i) for i in gpus()],
        "gpu_peak_allocated_bytes": [torch.cuda.max_memory_allocated(i) for i in gpus()],
        "gpu_peak_reserved_bytes": [torch.cuda.max_memory_reserved(i) for i in gpus()],
        "host_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def offloaded(folder: Path) -> dict[str, int]:
    """Number and bytes of the files that this rank has written to the offload folder."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return {"offload_files": len(sizes), "offload_bytes": sum(sizes)}


def merged(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """One report of all ranks: the times of the slowest rank, the memory of every rank."""
    slowest = max(ranks, key=lambda rank: rank["prefill_s"] + sum(rank["decode_s"]))
    sums = ("host_peak_rss_bytes", "offload_files", "offload_bytes")
    lists = ("devices", "gpu_peak_allocated_bytes", "gpu_peak_reserved_bytes")
    return {
        **slowest,
        **{name: [entry for rank in ranks for entry in rank[name]] for name in lists},
        **{name: sum(rank[name] for rank in ranks) for name in sums},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def arguments(description: str | None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkpoint", help="folder or hub id")
    parser.add_argument("--prompt", action="append", help="text; repeat for a batch")
    parser.add_argument("--prompt-tokens", type=int, help="random token ids instead of text")
    parser.add_argument("--input-ids", type=Path, help="JSON rows of token ids instead of text")
    parser.add_argument("--batch-size", type=int, default=PLAN["workload"]["batch_size"])
    parser.add_argument("--new-tokens", type=int, default=PLAN["workload"]["new_tokens"])
    parser.add_argument("--ignore-eos", action="store_true", help="always generate all new tokens")
    parser.add_argument("--repeat", type=int, default=1, help="run so many times and report the last")
    parser.add_argument("--seed", type=int, default=0, help="of the random token ids")
    parser.add_argument("--offload-folder", type=Path, help="folder on the disk for weights that stay there")
    parser.add_argument("--report", type=Path, help="write measurements as JSON")
    parser.add_argument("--logits", type=Path, help="write float32 logits of every step as safetensors")
    return parser.parse_args()


def main(load: Callable[[str, str], Any], description: str | None) -> None:
    """Load, generate, print.

    Args:
        load: a function from a checkpoint and an empty folder for offloaded weights to the loaded model.
        description: text of `--help`.
    """
    args = arguments(description)
    if RANK == 0:
        with in_words(args.checkpoint):
            check_model(args.checkpoint)
    with tempfile.TemporaryDirectory(prefix="offload-", dir=args.offload_folder) as offload_folder:
        # Each rank makes its folder in this one, which is removed even when ranks are killed.
        launch_ranks("--offload-folder", offload_folder)
        with in_words(args.checkpoint):
            start = time.perf_counter()
            model = load(args.checkpoint, offload_folder)
            load_s = time.perf_counter() - start
            everything, tokenizer = inputs_for(args, model)
            inputs = share(everything)
            for _ in range(max(1, args.repeat)):
                clock = Clock(keep=args.logits is not None)
                synchronize()
                start = time.perf_counter()
                tokens = run(model, inputs, args, clock)
        finish(
            args,
            tokenizer,
            everything["input_ids"].shape[0],
            tokens,
            clock,
            {**measured(clock, start, load_s), **offloaded(Path(offload_folder))},
        )
    if NUM_RANKS > 1:
        torch.distributed.destroy_process_group()


def finish(
    args: argparse.Namespace,
    tokenizer: Any,
    num_sequences: int,
    tokens: torch.Tensor,
    clock: Clock,
    mine: dict[str, Any],
) -> None:
    """Gather the ranks' sequences and measurements; rank 0 writes and prints them.

    Args:
        args: the command line.
        tokenizer: decodes the tokens; None to print token ids.
        num_sequences: sequences of the batch; ranks with fewer repeat one, which is dropped.
        tokens: new token ids of this rank, [sequences, new tokens].
        clock: has the logits, if they were asked for.
        mine: measurements of this rank.
    """
    ranks = gathered(mine)
    rows = [row for rank in gathered(tokens.tolist())[:NUM_STREAMS] for row in rank][:num_sequences]
    logits = gathered(torch.stack(clock.logits))[:NUM_STREAMS] if args.logits else []
    if RANK:
        return
    if args.report:
        args.report.write_text(json.dumps({**merged(ranks), "tokens": rows}, indent=1))
    if args.logits:
        from safetensors.torch import save_file

        steps = min(len(of_rank) for of_rank in logits)
        of_batch = torch.cat([of_rank[:steps] for of_rank in logits], dim=1)[:, :num_sequences]
        save_file({"logits": of_batch.contiguous()}, args.logits)
    for row in rows:
        print(tokenizer.decode(row, skip_special_tokens=True) if tokenizer else row)
