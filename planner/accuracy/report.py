"""The comparison with published rows as Markdown: acceptance bounds, medians, every row, and assumptions."""

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

Written by `planner accuracy`. The published numbers are in `planner/accuracy/published.csv`, and the setup of
each row for the cost model is in `planner/accuracy/setups.toml`. No row is left out; a row that cannot be
predicted states the reason. An error is predicted divided by published, minus one.
"""

_ASSUMED: Final = """\
## Assumptions

- No number is fitted to these rows. The properties of old releases described below were added after a first
  comparison that did not include them; each of them has a source of its own.
- Host time per operation on A100 hosts is the median of four rows of another benchmark (see the profile of an
  A100 80 GB). On the Titan RTX host, whose processor is not published, it is the default of all profiles.
- The meaning of BLOOM's rows is taken from the scripts and their logs: the batch size of ZeRO-3 is that of
  each of 8 streams, and its time is divided by the tokens of all streams.
- Releases of 2022 are modelled as they were. Until May 2023 Accelerate copied the whole KV cache to the first
  GPU at each token (its issue 1394); its device maps fill one device after another, or leave the first one
  empty. ZeRO-3 without persistent parameters gathers a bias together with its weight, through a flat tensor
  as large as the weight. NCCL has buffers on every GPU.
- PyTorch had no expandable segments then. Transient memory on a GPU takes {fragmentation:g} times its live
  bytes because of fragmentation. {note}.
- DeepSpeed's kernels are counted from the sources of 0.19.8, and the graphs are of transformers 5.23; the
  rows are older. The counts agree with the rows of the other benchmark.
- Unknown: the disk and the processor of the Titan RTX machine, and whether files were in the page cache when
  loading times were measured. The file system of Jean Zay is assumed to read 3 GB/s, as the source states,
  although 352 GB in 60 s need 6 GB/s.
"""


def markdown(lines: Sequence[ComparedRow], own: str = "") -> str:
    """The whole report; `own` is the section on benchmark rows, or empty."""
    parts = [
        _INTRODUCTION,
        _versions(),
        "## Acceptance bounds\n",
        _verdicts(verdicts(lines)),
        "## Medians\n",
        _medians(medians(lines)),
        *([own] if own else []),
        "## Every published row\n",
        _rows(lines),
        _ASSUMED.format(fragmentation=FRAGMENTATION.value, note=FRAGMENTATION.note),
        "## Further information taken from the sources\n",
        _notes(setups()),
    ]
    return "\n".join(parts)


def _versions() -> str:
    return f"offload-planner {metadata.version('offload-planner')}.\n"


def _verdicts(results: Iterable[Verdict]) -> str:
    return table(
        (
            "table",
            "rows",
            f"median error of time (at most {LARGEST_MEDIAN_ERROR:.0%})",
            "largest batch, published",
            "predicted",
            f"difference in table steps (at most {LARGEST_STEP})",
            "within bounds",
        ),
        (
            (
                verdict.table,
                str(verdict.num_rows),
                f"{verdict.median_error:.1%}",
                str(verdict.ladder.published) if verdict.ladder else "",
                str(verdict.ladder.predicted) if verdict.ladder else "",
                f"{verdict.ladder.steps:+d}" if verdict.ladder else "",
                "yes" if verdict.holds else "**no**",
            )
            for verdict in results
        ),
    )


def _medians(results: Iterable[Median]) -> str:
    return table(
        (
            "runtime",
            "metric",
            "rows",
            "rows with both numbers",
            "median error",
            "bias",
            "fit predicted correctly",
        ),
        map(median_cells, results),
    )


def median_cells(median: Median) -> tuple[str, ...]:
    """A row of the table of medians."""
    return (
        median.runtime,
        median.kind,
        str(median.num_rows),
        str(median.num_priced),
        f"{median.median_error:.1%}" if median.median_error is not None else "",
        f"{median.bias:+.1%}" if median.bias is not None else "",
        f"{median.fits_right} of {median.fits_known}" if median.fits_known else "",
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
        return published, "", "", f"not predicted: {line.reason}"
    predicted = f"{line.predicted:.3g} {row.unit}" if line.predicted is not None else ""
    if line.fits is False:
        predicted = f"OOM ({predicted})"
    error = f"{line.relative_error:+.0%}" if line.relative_error is not None else ""
    return published, predicted, error, _remark(line)


def _remark(line: ComparedRow) -> str:
    if line.fit_is_right is False:
        if line.row.is_out_of_memory:
            return "predicted to fit, but ran out of memory"
        return "predicted out of memory, but ran"
    return "out of memory, as published" if line.row.is_out_of_memory else ""


def _notes(groups: Iterable[Setup]) -> str:
    return "".join(f"- {_words(setup)}: {setup.note}.\n" for setup in groups if setup.note)


def _words(setup: Setup) -> str:
    return ", ".join(setup.rows.values())
