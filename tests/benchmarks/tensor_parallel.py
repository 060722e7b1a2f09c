"""Every family through the emitted folders of the tensor-parallel runtimes, and a table of what came out.

`python tests/benchmarks/tensor_parallel.py OUT.md [--jobs N] [--family NAME ...]` builds tiny checkpoints,
cuts them, emits plans for 2 and 4 ranks, runs each in real processes (gloo, on the CPU) and compares tokens
and logits with the plain model's. A family that a runtime does not run stands in the table with the reason.
"""

import argparse
import platform
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import deepspeed
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from planner.models.resolve import resolve
from planner.tracing.store import graph_for
from planner.verification.run import verify
from tests.integration.tensor_parallel_cases import EIGHT, UNKNOWN, WORKLOAD, cut, save, why_not, written

#: Beside the eight: other layouts of fused rows, norms per head, encoders, experts.
_OTHERS: Final = (
    *(
        "bert",
        "codegen",
        "falcon-grouped",
        "falcon-multi-head",
        "falcon-multi-query",
        "gemma2",
        "gemma3_text",
    ),
    *("gpt_bigcode", "mistral", "mixtral", "mpt", "opt-projected", "phi", "phi3", "qwen2", "qwen3"),
    *("qwen3_moe", "stablelm"),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        family: of the checkpoint.
        runtime: that runs it.
        num_ranks: over which.
        is_cut: whether it loads pre-shards.
        explicit: whether the row-parallel Linears are named though DeepSpeed finds them itself.
    """

    family: str
    runtime: str
    num_ranks: int
    is_cut: bool = False
    explicit: bool = False

    @property
    def words(self) -> str:
        """How it loads."""
        source = "pre-shards" if self.is_cut else "checkpoint"
        return f"{source}, derived policy" if self.explicit or self.family in UNKNOWN else source


def cases(families: list[str]) -> Iterator[Case]:
    """Every run; of the others than the eight a few."""
    for family in families:
        sources = (
            [(2, False), (2, True), (4, False), (4, True)] if family in EIGHT else [(2, False), (4, True)]
        )
        # What no table knows, `reshard` cuts by a roles file, which is another test's.
        known = [(ranks, is_cut) for ranks, is_cut in sources if not (is_cut and family in UNKNOWN)]
        for runtime in ("deepspeed-tp", "transformers-tp"):
            for num_ranks, is_cut in known:
                yield Case(family=family, runtime=runtime, num_ranks=num_ranks, is_cut=is_cut)
        if family not in UNKNOWN:
            yield Case(family=family, runtime="deepspeed-tp", num_ranks=2, explicit=True)


def outcome(case: Case, root: Path) -> str:
    """The last two columns of a row: tokens and logit error, or why there are none."""
    checkpoint = root / case.family
    reason = why_not(graph_for(resolve(str(checkpoint))), case.runtime, case.num_ranks)
    if reason is not None:
        return f"not run | {reason}"
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        work = Path(scratch)
        folder = written(checkpoint, case.runtime, case.num_ranks, work / "plan", explicit=case.explicit)
        try:
            shards = cut(checkpoint, case.runtime, case.num_ranks, work / "shards") if case.is_cut else None
            report = verify(
                folder,
                checkpoint,
                on=None,
                new_tokens=WORKLOAD.new_tokens,
                batch_size=WORKLOAD.batch_size,
                shards=shards,
                timeout_s=300,
            )
        except Exception as error:  # a run that fails is a row like others
            return f"FAILED | {str(error)[:300]}"
    found = report.script
    return f"{'equal' if found.tokens_equal else 'DIFFER'} ({found.num_tokens}) | {found.logit_error:.1e}"


def main() -> None:
    """Run every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--family", action="append", help="only these")
    args = parser.parse_args()
    families = args.family or [*EIGHT, *_OTHERS, *UNKNOWN]
    with tempfile.TemporaryDirectory(prefix="tensor-parallel-") as scratch:
        root = Path(scratch)
        for family in families:
            save(family, root / family)
        todo = list(cases(families))
        with ThreadPoolExecutor(args.jobs) as pool:
            rows = []
            for case, found in zip(todo, pool.map(lambda case: outcome(case, root), todo), strict=True):
                rows.append(f"| {case.family} | {case.runtime} | {case.num_ranks} | {case.words} | {found} |")
                print(rows[-1], flush=True)
    args.out.write_text(heading(len(todo)) + "\n".join(rows) + "\n")
    if any("FAILED" in row or "DIFFER" in row for row in rows):
        raise SystemExit("not every run generated what the plain model does")


def heading(num_runs: int) -> str:
    """What was run, on what."""
    return f"""# Tensor parallelism through emitted folders

`python tests/benchmarks/tensor_parallel.py`: {num_runs} cases of tiny checkpoints (float32, two layers or
more, {WORKLOAD.batch_size} × {WORKLOAD.new_tokens} greedy tokens). Each is a plan's folder, run as it is by
real processes with gloo on the CPU.
deepspeed {deepspeed.__version__}, transformers {transformers.__version__}, torch {torch.__version__},
Python {platform.python_version()}.
Tokens are compared with the plain model's; the error is the largest difference of a logit as a share of the
largest logit (float32 sums in another order: up to 1e-4 is allowed).

| family | runtime | ranks | loads | tokens | logit error, or the reason |
| --- | --- | --- | --- | --- | --- |
"""


if __name__ == "__main__":
    main()
