"""`planner accuracy`: the cost model against what others measured and published."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..options import output_options
from ..render import Column, show_json, show_table, show_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.accuracy.compare import Line
    from planner.accuracy.summary import Median, Verdict

_TABLES: Final = (
    Column("table", wraps=True),
    Column("times", is_number=True),
    Column("median error", is_number=True),
    Column("largest batch", is_number=True),
    Column("predicted", is_number=True),
    Column("holds"),
)
_MEDIANS: Final = (
    Column("runtime", wraps=True),
    Column("metric"),
    Column("rows", is_number=True),
    Column("priced", is_number=True),
    Column("median error", is_number=True),
    Column("bias", is_number=True),
    Column("fits right", is_number=True),
)


@click.command(name="accuracy")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write every row here, as Markdown."
)
@output_options
def command(out: Path | None, as_json: bool) -> None:
    """Hold the cost model against published measurements, row by row.

    The exit status is 1 when a table of BLOOM-176B or of Accelerate is off by more than it may be.
    """
    from planner.accuracy.compare import lines
    from planner.accuracy.report import markdown
    from planner.accuracy.summary import medians, require, verdicts
    from planner.plan import write_atomically

    found = lines()
    if out is not None:
        write_atomically(out, markdown(found).encode())
    if as_json:
        show_json({"rows": found, "medians": medians(found), "verdicts": verdicts(found)})
    else:
        _show(found, out)
    require(verdicts(found))


def _show(found: "Sequence[Line]", out: Path | None) -> None:
    from planner.accuracy.summary import medians, verdicts

    show_table(_TABLES, [_table_row(one) for one in verdicts(found)])
    show_table(_MEDIANS, [_median_row(one) for one in medians(found)])
    where = f"Every row is in {out}." if out is not None else "--out FILE writes every row."
    unpriced = sum(bool(one.reason) for one in found)
    show_text(f"{len(found)} published rows, {unpriced} of them not priced. {where}")


def _table_row(one: "Verdict") -> tuple[str, ...]:
    return (
        one.table,
        str(one.num_rows),
        f"{one.median_error:.1%}",
        str(one.ladder.published) if one.ladder else "",
        str(one.ladder.predicted) if one.ladder else "",
        "yes" if one.holds else "no",
    )


def _median_row(one: "Median") -> tuple[str, ...]:
    return (
        one.runtime,
        one.kind,
        str(one.num_rows),
        str(one.num_priced),
        f"{one.median_error:.1%}" if one.median_error is not None else "",
        f"{one.bias:+.1%}" if one.bias is not None else "",
        f"{one.fits_right} of {one.fits_known}" if one.fits_known else "",
    )
