"""The process that runs an emitted folder at several batch sizes: `python ladder.py FOLDER CHECKPOINT …`.

It imports the folder's `generate.py` and `generation.py`, so that it times the code that users run. The model
is loaded once. After each batch size it appends a line of JSON to a file, also when the batch size ran out of
memory. With several ranks it starts them, as the folder's script does.
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

#: Excerpts of the messages of failed allocations, of all libraries and devices.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "OutOfMemory")
#: New tokens of a warm-up call: enough to run every kernel of prefill and decode, and to reallocate a cache
#: that grows by copying.
_WARM_TOKENS = 3
#: Calls of a batch size are repeated up to this total time, or up to this number.
_ENOUGH_S = 2.0
_MOST_CALLS = 5
#: The same for calls that only prefill: a call measures many decode steps but only one prefill.
_ENOUGH_PREFILL_S = 4.0
_MOST_PREFILLS = 8
_OF_EACH_GPU = ("devices", "gpu_peak_allocated_bytes", "gpu_peak_reserved_bytes")


def main() -> None:
    """Load the model once and run every batch size."""
    args = _arguments()
    # Modules are imported from the plan's folder instead of from this file's folder.
    sys.path[0] = str(args.folder)
    # Imported first, because it may configure torch's allocator, which must happen before torch is imported.
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
    parser.add_argument("--batches", required=True, help="requested batch sizes, separated by commas")
    parser.add_argument("--outcomes", default="{}", help="JSON: batch size → whether it ran, so far")
    parser.add_argument("--until-oom", action="store_true", help="search for the largest that runs")
    parser.add_argument("--stop-at-oom", action="store_true", help="exit after the first out of memory")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--memory-cap", type=int, help="limit of each GPU's allocator, in bytes")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are appended to this file")
    return parser.parse_args()


def _cap(num_bytes: int | None) -> None:
    """Limit the allocator to `num_bytes` on every GPU, to simulate a smaller one; None: no limit."""
    import torch

    if num_bytes is None or not torch.cuda.is_available():
        return
    for index in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total), index)


class _RotatingClock:
    """A clock that rotates the core of its thread after each token."""

    def __init__(self, clock: Any, move: Callable[[], None]) -> None:
        self.clock, self.move = clock, move

    @property
    def times(self) -> list[float]:
        """The time at which each token's logits were complete."""
        return list(self.clock.times)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        result = self.clock(input_ids, scores)
        self.move()
        return result


class _Runner:
    """A loaded model, and the batch sizes to run."""

    def __init__(self, args: argparse.Namespace, generation: Any) -> None:
        self.args, self.generation = args, generation
        self.wanted = [int(batch) for batch in args.batches.split(",")]
        self.outcomes = {int(batch): has_run for batch, has_run in json.loads(args.outcomes).items()}
        self.load_s, self.load_peak, self.warm = 0.0, 0, False
        self.model: Any = None
        lengths = ["--prompt-tokens", str(args.prompt_tokens), "--new-tokens", str(args.new_tokens)]
        sys.argv = ["generate.py", args.checkpoint, *lengths, "--ignore-eos"]
        self.options = generation.arguments(None)

    def load(self, generate: Any, offload_folder: str) -> bool:
        """Load the model; running out of memory here counts as out of memory at every batch size.

        Returns:
            Whether the model is loaded.
        """
        start = time.perf_counter()
        try:
            self.model = generate.load(self.args.checkpoint, offload_folder)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            message = f"while loading: {_first_line(error)}"
            for batch in self.wanted:
                self._write({"batch": batch, "status": "out_of_memory", "said": message})
            return False
        self.load_s = time.perf_counter() - start
        self.load_peak = _host_peak()
        return True

    def all_batches(self) -> None:
        """Run the requested batch sizes, then those of the search for the largest."""
        from planner.bench.batches import next_batch

        while (batch := next_batch(self.wanted, self.outcomes, until_oom=self.args.until_oom)) is not None:
            self._write({"batch": batch, "status": "started"})
            _free_memory()
            try:
                row = self.run_batch(batch)
                message = ""
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                message = _first_line(error)
            self.outcomes[batch] = not message
            if not message:
                self._write(row)
                continue
            self._write({"batch": batch, "status": "out_of_memory", "said": message})
            if self.args.stop_at_oom:
                return

    def run_batch(self, batch: int) -> dict[str, Any]:
        """Run a warm-up call at a batch size, then measure; returns the row."""
        generation, options = self.generation, self.options
        options.batch_size = batch
        all_inputs, _ = generation.inputs_for(options, self.model)
        inputs = generation.share(all_inputs)
        # The whole first call of a process is slow, because pages of memory-mapped files are read during it;
        # its warm-up generates all tokens.
        options.new_tokens = min(_WARM_TOKENS if self.warm else self.args.new_tokens, self.args.new_tokens)
        generation.run(self.model, inputs, options, generation.Clock(keep=False))
        self.warm = True
        options.new_tokens = self.args.new_tokens
        _reset_peaks()
        reports, prefills = self.reports(inputs)
        own_row = {
            "prefill_s": statistics.fmean(prefills),
            "decode_s": [step for report in reports for step in report["decode_s"]],
            "load_s": self.load_s,
            "host_peak_rss_bytes": _host_peak(),
            "load_host_peak_bytes": self.load_peak,
            **{name: reports[-1][name] for name in _OF_EACH_GPU},
        }
        return {"batch": batch, "status": "ok", **_merged(generation.gathered(own_row))}

    def reports(self, inputs: Any) -> tuple[list[dict[str, Any]], list[float]]:
        """Measured calls: at least `--repeat`, and more when they are short.

        The thread that launches the GPU's kernels is rotated over the cores after each token, so that a row
        describes the machine and not the core on which its process happens to run.

        Returns:
            The reports of all full calls, and the seconds of every prefill.
        """
        from planner.probe.core_rotation import CoreRotation

        generation, spent = self.generation, 0.0
        reports: list[dict[str, Any]] = []
        move = CoreRotation(generation.RANK, generation.NUM_RANKS) if _is_gpu_only(generation.PLAN) else None
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
        """Measure one call.

        The times of the slowest rank are included, so that all ranks decide alike whether to repeat.
        """
        generation = self.generation
        clock = generation.Clock(keep=False)
        if move is not None:
            move()
            clock = _RotatingClock(clock, move)
        generation.synchronize()
        start = time.perf_counter()
        generation.run(self.model, inputs, self.options, clock)
        report = generation.measured(clock, start, self.load_s)
        times = generation.gathered((clock.times[-1] - start, report["prefill_s"]))
        whole_s, first_s = (max(seconds) for seconds in zip(*times, strict=True))
        return {**report, "whole_s": whole_s, "first_s": first_s}

    def _write(self, row: dict[str, Any]) -> None:
        """Append a row. Rank 0 writes the rows of all ranks; every rank writes its own out of memory."""
        if self.generation.RANK == 0 or row["status"] == "out_of_memory":
            with self.args.out.open("a") as stream:
                stream.write(json.dumps(row) + "\n")


def _is_gpu_only(plan: dict[str, Any]) -> bool:
    """Whether only one thread of the host works; a rotating thread would compete with other threads."""
    if plan["execution"]["main"] == "cpu":
        return False
    return all(p["runs_on"] != "cpu" and p["stored_on"] != "disk" for p in plan["placements"])


def _free_memory() -> None:
    """Release the memory that the previous batch size left behind.

    This frees what a failed batch size held. It also prevents fragmentation: blocks of another batch size do
    not fit, so that near the memory limit the allocator releases and maps blocks in every layer. OPT-13B's
    steps at batch 16 took 55 ms more in a process that had run batch 8 before
    (tests/benchmarks/results/2026-11-21-h100-second-rows.jsonl).
    """
    import torch

    gc.collect()
    # glibc only. `ranks.py` of the emitted folder configures which pages glibc retains.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        # Pinned host memory; older releases of torch cannot release it.
        getattr(torch.accelerator, "empty_host_cache", torch.cuda.empty_cache)()


def _merged(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """One row for all ranks: the times of the slowest rank, and the memory of all ranks."""
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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _host_peak() -> int:
    """Peak resident set in bytes since `_reset_peaks`, or since the start where it cannot be reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peaks() -> None:
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
