"""`planner accuracy`: compares the cost model with published measurements and with benchmark rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..exit_codes import ExitCode
from ..options import output_options, rows_option
from ..program import after_json
from ..render import Column, show_json, show_table, show_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.accuracy.compare import ComparedRow
    from planner.accuracy.own import LargestBatch, OwnLine
    from planner.accuracy.summary import Verdict

_TABLES: Final = (
    Column("table", wraps=True),
    Column("rows", is_number=True),
    Column("median error", is_number=True),
    Column("largest batch", is_number=True),
    Column("predicted", is_number=True),
    Column("passed"),
)
_MEDIANS: Final = (
    Column("runtime", wraps=True),
    Column("metric"),
    Column("rows", is_number=True),
    Column("predicted", is_number=True),
    Column("median error", is_number=True),
    Column("bias", is_number=True),
    Column("fit correct", is_number=True),
)

_OWN: Final = (
    Column("benchmark rows", wraps=True),
    Column("metric"),
    Column("rows", is_number=True),
    Column("median error", is_number=True),
    Column("bias", is_number=True),
    Column("worst", is_number=True),
)
_BORDERS: Final = (
    Column("configuration", wraps=True),
    Column("model"),
    Column("memory"),
    Column("largest that ran", is_number=True),
    Column("smallest out of memory", is_number=True),
    Column("largest predicted", is_number=True),
    Column("predicted / ran", is_number=True),
)


@click.command(name="accuracy")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a Markdown report with every row."
)
@rows_option("Rows that `planner bench` wrote, added to the published ones; may be repeated.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a chart of predicted against measured values: .png or .svg.",
)
@output_options
def command(out: Path | None, row_files: tuple[Path, ...], plot: Path | None, as_json: bool) -> int:
    """Compare the cost model with published measurements and with your own benchmark rows.

    The exit status is 1 when a published table of BLOOM-176B or of Accelerate is predicted with a larger
    error than allowed.
    """
    from planner.accuracy.compare import lines
    from planner.accuracy.own import largest_batches, own_lines
    from planner.accuracy.own_report import own_markdown, own_medians
    from planner.accuracy.points import own_points, published_points
    from planner.accuracy.report import markdown
    from planner.accuracy.summary import medians, require, verdicts
    from planner.errors import VerificationError
    from planner.files import write_atomically
    from planner.report.scatter import check_picture, save_scatter

    if plot is not None:
        check_picture(plot)
    own, limits = own_lines(row_files), largest_batches(row_files)
    found = lines()
    if out is not None:
        write_atomically(out, markdown(found, own_markdown(own, limits) if own else "").encode())
    if plot is not None:
        save_scatter([*own_points(own), *published_points(found)], "Accuracy of the cost model", plot)
    if as_json:
        ours = {"own_rows": own, "own_medians": own_medians(own), "own_borders": limits}
        show_json({"rows": found, "medians": medians(found), "verdicts": verdicts(found), **ours})
    else:
        _show(found, out)
        _show_own(own, limits)
    try:
        require(verdicts(found))
    except VerificationError as error:
        if not as_json:
            raise
        return after_json(error)
    return ExitCode.OK


def _show(found: "Sequence[ComparedRow]", out: Path | None) -> None:
    from planner.accuracy.report import median_cells
    from planner.accuracy.summary import medians, verdicts

    show_table(_TABLES, [_table_row(one) for one in verdicts(found)])
    show_table(_MEDIANS, [median_cells(one) for one in medians(found)])
    where = f"All rows are in {out}." if out is not None else "--out FILE writes all rows."
    unpriced = sum(bool(one.reason) for one in found)
    show_text(f"{len(found)} published rows, {unpriced} of them without a prediction. {where}")


def _show_own(own: "Sequence[OwnLine]", limits: "Sequence[LargestBatch]") -> None:
    from planner.accuracy.own_report import fits_right, largest_batch_cells, own_median_cells, own_medians

    if not own:
        return
    show_table(_OWN, [own_median_cells(one) for one in own_medians(own)])
    right, known = fits_right(own)
    show_text(f"{len(own)} benchmark rows; fit or out of memory predicted correctly in {right} of {known}.")
    for file in dict.fromkeys(one.file for one in limits):
        cells = [largest_batch_cells(one)[1:] for one in limits if one.file == file]
        show_table(_BORDERS, cells, title=f"Largest batches in {file}")


def _table_row(one: "Verdict") -> tuple[str, ...]:
    return (
        one.table,
        str(one.num_rows),
        f"{one.median_error:.1%}",
        str(one.ladder.published) if one.ladder else "",
        str(one.ladder.predicted) if one.ladder else "",
        "yes" if one.holds else "no",
    )
