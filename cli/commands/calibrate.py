"""`planner calibrate`: refits the efficiency terms of a profile to benchmark rows."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..options import output_options, rows_option
from ..render import Column, show_json, show_table, show_text

if TYPE_CHECKING:
    from planner.calibrate.fit import Fit
    from planner.calibrate.terms import Sample

_COLUMNS: Final = (
    Column("term", wraps=True),
    Column("value", is_number=True),
    Column("fitted", is_number=True),
    Column("error", is_number=True),
    Column("new error", is_number=True),
    Column("taken"),
)


@click.command(name="calibrate")
@click.argument("profile", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@rows_option("Rows that `planner bench` wrote on the profile's machine; may be repeated.", required=True)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the new profile here.",
)
@output_options
def command(profile: Path, row_files: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Refit the efficiency terms of a hardware profile to benchmark rows of that machine.

    Cross-validation decides: a term changes only when that improves the prediction of configurations that
    were left out of the fit.
    """
    from planner.calibrate.fit import fit
    from planner.calibrate.terms import Sample, numbers_of
    from planner.calibrate.write import rewritten
    from planner.files import write_atomically
    from planner.hardware.load import load

    machine = load(str(profile.resolve()))
    sample = Sample(machine, row_files)
    found = fit(sample.errors, sample.groups, sample.upper)
    keys = list(sample.terms)
    changed = {key: value for key, value in sample.values(found.theta).items() if _moved(sample, key, value)}
    numbers = numbers_of(machine, changed)
    text = rewritten(profile.read_text(encoding="utf-8"), numbers, _note(sample))
    write_atomically(out, text.encode())
    if as_json:
        terms = [{"name": keys[one.term], "trial": one} for one in found.trials]
        show_json({"terms": terms, "before": found.before, "after": found.after, "changed": numbers})
    else:
        _show(sample, found, keys)
        show_text(f"{len(changed)} of {len(keys)} terms changed; written: {out}")


def _moved(sample: "Sample", key: str, value: float) -> bool:
    return not math.isclose(value, sample.terms[key], rel_tol=1e-9)


def _note(sample: "Sample") -> str:
    dates = sorted({row.date[:10] for row in sample.rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"calibrated on {len(sample.rows)} rows of {len(set(sample.groups))} configurations measured {when}"
    )


def _show(sample: "Sample", found: "Fit", keys: list[str]) -> None:
    rows = []
    for one in found.trials:
        value = sample.terms[keys[one.term]]
        rows.append(
            (
                keys[one.term],
                f"{value:.3g}",
                f"{value * math.exp(found.theta[one.term] or one.theta):.3g}",
                f"{one.before:.1%}",
                f"{one.after:.1%}",
                "yes" if one.taken else "no",
            )
        )
    show_table(_COLUMNS, rows)
    show_text(
        f"Cross-validated error of the times (root mean square of logarithms): {found.before:.1%} before, "
        f"{found.after:.1%} after calibration; {len(sample.rows)} rows of {len(set(sample.groups))} "
        f"configurations."
    )
