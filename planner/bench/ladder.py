"""The process that runs an emitted folder at several batch sizes: `python ladder.py FOLDER CHECKPOINT …`.

It imports the folder's own `generate.py` and `generation.py`, so that what is timed is what users run. The
model is loaded once; of each batch a line of JSON is written as soon as it is done. Out of memory is a line
like any other. With several ranks the script starts them, as the folder's own does.
"""

import argparse
import ctypes
import gc
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What a failing allocation says, of whatever library and device.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "OutOfMemory")
#: New tokens of the call that is not counted: every kernel of prefill and decode has then run, and a cache
#: that grows by copying has had its second place.
_WARM_TOKENS = 3
#: Calls of a batch go on until so much was measured, or so many.
_ENOUGH_S = 2.0
_MOST_CALLS = 5
#: And so of its prompt alone: a call has many steps, and one prefill.
_ENOUGH_PREFILL_S = 4.0
_MOST_PREFILLS = 8
_OF_EACH_GPU = ("devices", "gpu_peak_allocated_bytes", "gpu_peak_reserved_bytes")


def main() -> None:
    """Load once, run every batch."""
    args = _arguments()
    # The folder's modules stand in for this file's neighbours.
    sys.path[0] = str(args.folder)
    # First, because it sets torch's allocator up, or leaves it alone.
    generate = importlib.import_module("generate")
    import generation

    generation.launch_ranks()
    os.environ["GPU_MEMORY_CAP_BYTES"] = str(args.memory_cap or 0)
    _cap(args.memory_cap)
    with tempfile.TemporaryDirectory(prefix="offload-") as offload_folder:
        runner = _Runner(args, generation)
        if runner.load(generate, offload_folder):
            runner.all_batches()
    if generation.NUM_RANKS > 1:
        import torch

        torch.distributed.destroy_process_group()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--batches", required=True, help="asked for, with commas")
    parser.add_argument("--went", default="{}", help="JSON: batch → whether it ran, of an earlier process")
    parser.add_argument("--until-oom", action="store_true")
    parser.add_argument("--stop-at-oom", action="store_true", help="the runtime is of no use after it")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--memory-cap", type=int, help="bytes for each GPU's allocator")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are added to it")
    return parser.parse_args()


def _cap(num_bytes: int | None) -> None:
    """Refuse allocations beyond so many bytes on every GPU, as a smaller one would."""
    import torch

    if num_bytes is None or not torch.cuda.is_available():
        return
    for index in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total), index)


class _Walking:
    """A clock that has its thread move to another core after each token."""

    def __init__(self, clock: Any, move: Callable[[], None]) -> None:
        self.clock, self.move = clock, move

    @property
    def times(self) -> list[float]:
        """When each token's logits were there."""
        return list(self.clock.times)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        result = self.clock(input_ids, scores)
        self.move()
        return result


class _Runner:
    """One loaded model and the batches it runs."""

    def __init__(self, args: argparse.Namespace, generation: Any) -> None:
        self.args, self.generation = args, generation
        self.wanted = [int(batch) for batch in args.batches.split(",")]
        self.went = {int(batch): fine for batch, fine in json.loads(args.went).items()}
        self.load_s, self.load_peak, self.warm = 0.0, 0, False
        self.model: Any = None
        lengths = ["--prompt-tokens", str(args.prompt_tokens), "--new-tokens", str(args.new_tokens)]
        sys.argv = ["generate.py", args.checkpoint, *lengths, "--ignore-eos"]
        self.options = generation.arguments(None)

    def load(self, generate: Any, offload_folder: str) -> bool:
        """Load the model; out of memory here is out of memory at every batch."""
        start = time.perf_counter()
        try:
            self.model = generate.load(self.args.checkpoint, offload_folder)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            for batch in self.wanted:
                self._write(
                    {"batch": batch, "status": "out_of_memory", "said": f"while loading: {_first(error)}"}
                )
            return False
        self.load_s = time.perf_counter() - start
        self.load_peak = _host_peak()
        return True

    def all_batches(self) -> None:
        """Every batch that there is something to learn from."""
        from planner.bench.batches import next_batch

        while (batch := next_batch(self.wanted, self.went, until_oom=self.args.until_oom)) is not None:
            self._write({"batch": batch, "status": "started"})
            _forget_batch()
            try:
                row = self.one(batch)
                said = ""
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                said = _first(error)
            self.went[batch] = not said
            if not said:
                self._write(row)
                continue
            self._write({"batch": batch, "status": "out_of_memory", "said": said})
            if self.args.stop_at_oom:
                return

    def one(self, batch: int) -> dict[str, Any]:
        """Warm up, then measure."""
        generation, options = self.generation, self.options
        options.batch_size = batch
        everything, _ = generation.inputs_for(options, self.model)
        inputs = generation.share(everything)
        # A process's first call is slower to its end: files that are mapped are only then read.
        options.new_tokens = min(_WARM_TOKENS if self.warm else self.args.new_tokens, self.args.new_tokens)
        generation.run(self.model, inputs, options, generation.Clock(keep=False))
        self.warm = True
        options.new_tokens = self.args.new_tokens
        _forget_peaks()
        reports, prefills = self.reports(inputs)
        mine = {
            "prefill_s": statistics.fmean(prefills),
            "decode_s": [step for report in reports for step in report["decode_s"]],
            "load_s": self.load_s,
            "host_peak_rss_bytes": _host_peak(),
            "load_host_peak_bytes": self.load_peak,
            **{name: reports[-1][name] for name in _OF_EACH_GPU},
        }
        return {"batch": batch, "status": "ok", **_merged(generation.gathered(mine))}

    def reports(self, inputs: Any) -> tuple[list[dict[str, Any]], list[float]]:
        """As many calls as were asked for, and a few more of short ones; and the seconds of every prefill.

        The thread that issues a GPU's work moves on after each token: a row speaks for the machine, not for
        the core that its process is on.
        """
        from planner.probe.core_rotation import CoreRotation

        generation, spent = self.generation, 0.0
        reports: list[dict[str, Any]] = []
        move = (
            CoreRotation(generation.RANK, generation.NUM_RANKS) if _is_gpus_alone(generation.PLAN) else None
        )
        while len(reports) < self.args.repeat or (spent < _ENOUGH_S and len(reports) < _MOST_CALLS):
            reports.append(self.call(inputs, move))
            spent += reports[-1]["whole_s"]
        prefills = [report["prefill_s"] for report in reports]
        spent = sum(report["first_s"] for report in reports)
        self.options.new_tokens = 1
        while spent < _ENOUGH_PREFILL_S and len(prefills) < _MOST_PREFILLS:
            report = self.call(inputs, move)
            prefills.append(report["prefill_s"])
            spent += report["first_s"]
        return reports, prefills

    def call(self, inputs: Any, move: Callable[[], None] | None) -> dict[str, Any]:
        """One call: what this rank measured, and how long the slowest took, so all go on or none does."""
        generation = self.generation
        clock = generation.Clock(keep=False)
        if move is not None:
            move()
            clock = _Walking(clock, move)
        generation.synchronize()
        start = time.perf_counter()
        generation.run(self.model, inputs, self.options, clock)
        report = generation.measured(clock, start, self.load_s)
        everyones = generation.gathered((clock.times[-1] - start, report["prefill_s"]))
        return {**report, "whole_s": max(w for w, _ in everyones), "first_s": max(f for _, f in everyones)}

    def _write(self, row: dict[str, Any]) -> None:
        """Rank 0 speaks for all; a rank out of memory speaks for itself."""
        if self.generation.RANK == 0 or row["status"] == "out_of_memory":
            with self.args.out.open("a") as stream:
                stream.write(json.dumps(row) + "\n")


def _is_gpus_alone(plan: dict[str, Any]) -> bool:
    """Whether the host has one thread at work: where there are more, one that moves may meet another."""
    if plan["execution"]["main"] == "cpu":
        return False
    return all(one["runs_on"] != "cpu" and one["stored_on"] != "disk" for one in plan["placements"])


def _forget_batch() -> None:
    """Give back what the batch before has left.

    What a failed one held is free then. And pages that were cut for another batch do not fit: near its limit
    the allocator gives some back and maps others in every layer. OPT-13B's steps at batch 16 took 55 ms more
    in a process that had run batch 8 (tests/benchmarks/results/2026-11-21-h100-second-rows.jsonl).
    """
    import torch

    gc.collect()
    # glibc's: how a plan has it keep pages, `ranks.py` says.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        # Pinned host memory; older releases keep it.
        getattr(torch.accelerator, "empty_host_cache", torch.cuda.empty_cache)()


def _merged(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of all ranks: the slowest one's times, everybody's memory."""
    slowest = max(ranks, key=lambda rank: rank["prefill_s"] + sum(rank["decode_s"]))
    sums = ("host_peak_rss_bytes", "load_host_peak_bytes")
    return {
        **slowest,
        **{name: [entry for rank in ranks for entry in rank[name]] for name in _OF_EACH_GPU},
        **{name: sum(rank[name] for rank in ranks) for name in sums},
    }


def _is_out_of_memory(error: BaseException) -> bool:
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY)


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _host_peak() -> int:
    """The largest resident set since `_forget_peaks`, or since the start where the kernel cannot forget."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _forget_peaks() -> None:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


if __name__ == "__main__":
    main()
