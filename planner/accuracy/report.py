"""The comparison as Markdown: what it is held to, medians, every row, and what was assumed."""

from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Final

from planner.accuracy.compare import ComparedRow
from planner.accuracy.fragmentation import FRAGMENTATION
from planner.accuracy.setups import Setup, setups
from planner.accuracy.summary import (
    LARGEST_MEDIAN_ERROR,
    LARGEST_STEP,
    Median,
    Verdict,
    medians,
    verdicts,
)
from planner.accuracy.tables import table

_INTRODUCTION: Final = """\
# The cost model against published measurements

Written by `planner accuracy`. Every number of the sources is in `planner/accuracy/published.csv`, and how
each row is run in the model in `planner/accuracy/setups.toml`. No row is left out: one that cannot be priced
says why. Errors are predicted over published, less one.
"""

_ASSUMED: Final = """\
## What is assumed

- No number is fitted to these rows. What is told below of the releases of their time was looked for after a
  first comparison had missed it; each has a source of its own.
- Host time per operation on A100 hosts is the median of four rows of another benchmark (see the profile of an
  A100 80 GB). On the Titan RTX host, whose processor is not published, it is the default of all profiles.
- BLOOM's scripts and their logs settle what a row means: ZeRO-3's batch is of each of 8 streams, and its time
  is divided by the tokens of all of them.
- Releases of 2022 are priced as they were. Until May 2023 Accelerate sent the whole cache to the first GPU at
  each token (its issue 1394); its maps of that time fill device after device, or leave the first one empty.
  ZeRO-3 gathers a bias with its weight when nothing is kept, through a flat tensor as large as the weight;
  NCCL keeps buffers on every GPU.
- PyTorch had no expandable segments then. What comes and goes on a GPU takes {fragmentation:g} times its live
  bytes. {note}.
- DeepSpeed's kernels are counted from the sources of 0.19.8, and the graphs are of transformers 5.23; the
  rows are older. The counts agree with the other benchmark's rows.
- Unknown: the Titan RTX machine's disk and processor, and whether files were in a cache when loading times
  were taken. Jean Zay's file system is taken at the 3 GB/s that the source states, though 352 GB in 60 s
  need 6.
"""


def markdown(lines: Sequence[ComparedRow], own: str = "") -> str:
    """The whole report, with the part about rows of our own where there is one."""
    parts = [
        _INTRODUCTION,
        _versions(),
        "## What it is held to\n",
        _verdicts(verdicts(lines)),
        "## Medians\n",
        _medians(medians(lines)),
        *([own] if own else []),
        "## Every published row\n",
        _rows(lines),
        _ASSUMED.format(fragmentation=FRAGMENTATION.value, note=FRAGMENTATION.note),
        "## What was taken from the sources besides the rows\n",
        _notes(setups()),
    ]
    return "\n".join(parts)


def _versions() -> str:
    return f"offload-planner {metadata.version('offload-planner')}.\n"


def _verdicts(found: Iterable[Verdict]) -> str:
    return table(
        (
            "table",
            "times",
            f"median error of time (at most {LARGEST_MEDIAN_ERROR:.0%})",
            "largest batch, published",
            "predicted",
            f"steps apart (at most {LARGEST_STEP})",
            "holds",
        ),
        (
            (
                one.table,
                str(one.num_rows),
                f"{one.median_error:.1%}",
                str(one.ladder.published) if one.ladder else "",
                str(one.ladder.predicted) if one.ladder else "",
                f"{one.ladder.steps:+d}" if one.ladder else "",
                "yes" if one.holds else "**no**",
            )
            for one in found
        ),
    )


def _medians(found: Iterable[Median]) -> str:
    return table(
        ("runtime", "metric", "rows", "with a number on both sides", "median error", "bias", "fits right"),
        map(median_cells, found),
    )


def median_cells(one: Median) -> tuple[str, ...]:
    """A line of the table of medians."""
    return (
        one.runtime,
        one.kind,
        str(one.num_rows),
        str(one.num_priced),
        f"{one.median_error:.1%}" if one.median_error is not None else "",
        f"{one.bias:+.1%}" if one.bias is not None else "",
        f"{one.fits_right} of {one.fits_known}" if one.fits_known else "",
    )


def _rows(lines: Iterable[ComparedRow]) -> str:
    return table(
        (
            "model",
            "runtime",
            "dtype",
            "GPUs",
            "batch",
            "metric",
            "published",
            "predicted",
            "error",
            "remark",
        ),
        ((*_named(line), *_compared(line)) for line in lines),
    )


def _named(line: ComparedRow) -> tuple[str, ...]:
    row = line.row
    return row.model, row.runtime, row.dtype, row.n_gpus, row.batch, row.metric


def _compared(line: ComparedRow) -> tuple[str, ...]:
    row = line.row
    published = row.value if row.is_out_of_memory else f"{row.value} {row.unit}"
    if line.reason:
        return published, "", "", f"not priced: {line.reason}"
    predicted = f"{line.predicted:.3g} {row.unit}" if line.predicted is not None else ""
    if line.fits is False:
        predicted = f"OOM ({predicted})"
    error = f"{line.relative_error:+.0%}" if line.relative_error is not None else ""
    return published, predicted, error, _remark(line)


def _remark(line: ComparedRow) -> str:
    if line.fit_is_right is False:
        return "does not fit, and did" if line.row.value != "OOM" else "fits, and did not"
    return "does not fit, as published" if line.row.is_out_of_memory else ""


def _notes(found: Iterable[Setup]) -> str:
    return "".join(f"- {_words(one)}: {one.note}.\n" for one in found if one.note)


def _words(setup: Setup) -> str:
    return ", ".join(setup.rows.values())
