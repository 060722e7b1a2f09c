"""Speed and memory of resharding beside a plain copy, the obvious script, and loading without pre-shards.

`python tests/benchmarks/resharding.py [--gigabytes 4] [--folder FOLDER] [--case copy --case memory …]` writes
checkpoints of random weights into a folder of its own inside FOLDER, about five times that size at once, and
removes it. Every measurement is a process of its own. Reports, with machine and versions; decides nothing.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from measuring import CHILDREN, Run, load, machine, measure, row, size_of, table
from synthetic_checkpoints import llama_config, opt_config, write

_RESHARD: Final = (sys.executable, "-c", "from cli.reshard import command; command()")
_TP: Final = 8
_MIB: Final = 1 << 20


class Bench:
    """The cases; each prints its table."""

    def __init__(self, folder: Path, size_bytes: int, repeats: int, threads: int) -> None:
        """Checkpoints and outputs go into `folder`."""
        self.folder, self.size_bytes, self.repeats, self.threads = folder, size_bytes, repeats, threads
        self.output = folder / "output"

    def source(self, name: str, config: Any, size_bytes: int) -> Path:
        """A checkpoint, written when it is first asked for."""
        path = self.folder / name
        if not path.exists():
            write(path, config, size_bytes)
        return path

    def large(self) -> Path:
        """A llama of at least the size that was asked for."""
        return self.source("llama", llama_config(), self.size_bytes)

    def reshard(self, source: Path, *options: object, cached: bool = True, keep: bool = False) -> Run:
        """One run of the command, from Python's start to its end."""
        self.prepare(source, cached=cached)
        options = ("--tp", _TP, "--jobs", self.threads, *options)
        run = measure(*_RESHARD, source, "--output", self.output, "--json", *options)
        if not keep:
            shutil.rmtree(self.output)
        return run

    def prepare(self, source: Path, *, cached: bool) -> None:
        """The disk idle, and the source in the page cache or not."""
        os.sync()
        for path in source.glob("*.safetensors"):
            descriptor = os.open(path, os.O_RDONLY)
            if not cached:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            while cached and os.read(descriptor, 8 * _MIB):
                pass
            os.close(descriptor)

    def copy(self) -> None:
        """Bytes per second beside copies of the same bytes, taken in turns."""
        source = self.large()
        written = json.loads(self.reshard(source).output)["written_bytes"]
        moved = written + size_of(source)
        ways: dict[str, Callable[[bool], Run]] = {
            "plain copy": lambda cached: self._copy(source, written, "plain", cached),
            "eager copy": lambda cached: self._copy(source, written, "eager", cached),
            "reshard": lambda cached: self.reshard(source, cached=cached),
        }
        print(
            f"\n## Resharding to tp {_TP} beside a copy, {moved / 1e9:.2f} GB moved, {self.threads} threads\n"
        )
        print(f"{size_of(source) / 1e9:.2f} GB read and {written / 1e9:.2f} GB written and synced by each.\n")
        table("source", "what", "median s", "all, s", "GB/s", "reshard's share of it")
        for cached in (True, False):
            runs: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(self.repeats):
                # Each goes first as often as the others do.
                order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
                for way in order:
                    runs[way].append(ways[way](cached).elapsed_s)
            ours = statistics.median(runs["reshard"])
            for way, seconds in runs.items():
                median_s = statistics.median(seconds)
                shown = " ".join(f"{s:.2f}" for s in sorted(seconds))
                share = f"{median_s / ours:.2f}"
                row(
                    "cached" if cached else "on disk",
                    *(way, f"{median_s:.2f}", shown, f"{moved / median_s / 1e9:.2f}", share),
                )

    def _copy(self, source: Path, written_bytes: int, way: str, cached: bool) -> Run:
        self.prepare(source, cached=cached)
        run = measure(sys.executable, CHILDREN, "copy", source, self.output, written_bytes, self.threads, way)
        shutil.rmtree(self.output)
        return run

    def memory(self) -> None:
        """Peak memory at two budgets and two sizes."""
        sources = [self.source("small", llama_config(), 10**9), self.large()]
        print("\n## Peak memory against the budget\n")
        table("checkpoint GB", "what", "--memory MiB", "anonymous MiB", "resident MiB", "s")
        for budget in (512, 256):
            for source in sources:
                run = self.reshard(source, "--memory", f"{budget}MiB")
                row(
                    f"{size_of(source) / 1e9:.2f}", f"tp {_TP}", budget, *_memory(run), f"{run.elapsed_s:.2f}"
                )

    def formats(self) -> None:
        """Casting and transposing."""
        print(f"\n## Casting and transposing, tp {_TP}, --memory 512MiB\n")
        table("checkpoint", "GB", "options", "s", "GB/s moved", "anonymous MiB", "resident MiB")
        opt = self.source("opt", opt_config(), self.size_bytes)
        for source, *options in (
            (self.large(), "--format", "safetensors"),
            (self.large(), "--format", "safetensors", "--dtype", "float16"),
            (opt, "--format", "safetensors"),
            (opt, "--format", "deepspeed"),
            (opt, "--format", "deepspeed", "--dtype", "float16"),
        ):
            runs = [self.reshard(source, *options) for _ in range(3)]
            run = sorted(runs)[1]
            speed = (json.loads(run.output)["written_bytes"] + size_of(source)) / run.elapsed_s / 1e9
            row(
                *(source.name, f"{size_of(source) / 1e9:.2f}", " ".join(options)),
                *(
                    f"{run.elapsed_s:.2f}",
                    f"{speed:.2f}",
                    *_memory(max(runs, key=lambda r: r.anonymous_bytes)),
                ),
            )

    def script(self) -> None:
        """Time and memory of loading, slicing and saving, and whether it writes the same."""
        source = self.large()
        theirs = self.folder / "theirs"
        print(f"\n## Beside the obvious script, {size_of(source) / 1e9:.2f} GB to tp {_TP}\n")
        table("what", "s", "anonymous MiB", "resident MiB")
        self.prepare(source, cached=True)
        run = measure(sys.executable, CHILDREN, "script", source, theirs, _TP)
        row("from_pretrained, slice, save_file", f"{run.elapsed_s:.2f}", *_memory(run))
        run = self.reshard(source, keep=True)
        row("reshard", f"{run.elapsed_s:.2f}", *_memory(run))
        print(f"\nSame tensors in all {_TP} files: {'yes' if _same(self.output, theirs) else 'NO'}")
        shutil.rmtree(theirs)
        shutil.rmtree(self.output)

    def load(self) -> None:
        """Bytes per rank and seconds of AutoTP from pre-shards and without."""
        source = self.large()
        self.reshard(source, keep=True)
        per_rank = max(path.stat().st_size for path in self.output.glob("*.safetensors"))
        shutil.rmtree(self.output)
        print("\n## Loading into DeepSpeed AutoTP, CPU, gloo\n")
        print(
            f"Of the {size_of(source) / 1e9:.2f} GB, a rank's file at tp {_TP} has {per_rank / 1e9:.3f} GB: "
            f"{size_of(source) / per_rank:.2f}× less.\n"
        )
        # The embeddings, whole on every rank, have here about the share that they have in a 7B model.
        config = llama_config(hidden=2048, inner=5632, vocab=8192)
        small = self.source("loaded", config, 10**9)
        total = size_of(small)
        print(
            f"Below: {total / 1e9:.2f} GB. *Cached*: all ranks read one folder in the page cache. *Cold*: "
            "every rank reads a folder of its own, as on a machine of its own, not in the page cache.\n"
        )
        table(
            "tp",
            "from",
            "cached s",
            "cold s",
            "a rank's GB from disk",
            "of the checkpoint",
            "logits, sum of magnitudes",
        )
        for tp_size in (_TP, 4, 2):
            self.reshard(small, "--tp", tp_size, keep=True)
            for way, folder in (("unsharded", small), ("pre-shards", self.output)):
                self.prepare(folder, cached=True)
                cached = sorted(load([folder] * tp_size, way) for _ in range(3))[1]
                copies = [self.folder / f"rank-{rank}" for rank in range(tp_size)]
                for rank, copy in enumerate(copies):
                    # A rank of pre-shards needs its own files alone.
                    others = () if way == "unsharded" else _of_other_ranks(folder, rank)
                    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*others))
                for copy in copies:
                    self.prepare(copy, cached=False)
                cold_s, read_bytes, logits = load(copies, way)
                for copy in copies:
                    shutil.rmtree(copy)
                row(
                    *(tp_size, way, f"{cached[0]:.2f}", f"{cold_s:.2f}"),
                    *(f"{read_bytes / 1e9:.3f}", f"{read_bytes / total:.3f}", f"{logits:.6g}"),
                )
            shutil.rmtree(self.output)


def _of_other_ranks(folder: Path, rank: int) -> list[str]:
    return [p.name for p in folder.glob("*.safetensors") if f"-rank-{rank:02d}-" not in p.name]


def _memory(run: Run) -> Iterator[str]:
    return (f"{size / _MIB:.0f}" for size in (run.anonymous_bytes, run.resident_bytes))


def _same(ours: Path, theirs: Path) -> bool:
    import torch
    from safetensors import safe_open

    for path in sorted(theirs.iterdir()):
        with safe_open(path, "pt") as a, safe_open(ours / path.name, "pt") as b:
            names = list(a.keys())
            if set(names) != set(b.keys()):
                return False
            if not all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in names):
                return False
    return True


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cases = ("copy", "memory", "formats", "script", "load")
    parser.add_argument("--gigabytes", type=float, default=4, help="at least so large; 4 by default")
    parser.add_argument("--folder", type=Path, help="where to write; the temporary folder by default")
    parser.add_argument("--case", action="append", choices=cases, help="one or several; all by default")
    parser.add_argument("--repeats", type=int, default=7, help="of every copy; 7 by default")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="resharding-") as folder:
        print(f"# Resharding\n\n{machine(Path(folder))}")
        bench = Bench(Path(folder), int(given.gigabytes * 1e9), given.repeats, given.threads)
        for case in given.case or cases:
            getattr(bench, case)()


if __name__ == "__main__":
    _main()
