"""`planner probe`: measures this machine and writes a hardware profile."""

import datetime
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

import click

from planner.errors import InvalidInputError
from planner.files import write_atomically
from planner.probe.fits import Measurement
from planner.probe.profile import Probed, probed, to_toml
from planner.probe.run import TIMEOUT_S, probe
from planner.sizes import format_by_unit

from ..options import make_room_for, output_options
from ..render import Column, show_json, show_table, show_text

_VERSIONS: Final = ("torch", "transformers", "accelerate")


@click.command(name="probe")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the profile to this .toml file."
)
@click.option(
    "--disk",
    type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
    help="Folder on the disk to measure.  [default: the folder for temporary files]",
)
@click.option(
    "--no-disk", is_flag=True, help="Do not measure a disk, for example where it is a network volume."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=TIMEOUT_S,
    show_default=True,
    help="Time limit of each part of the measurement, in seconds.",
)
@output_options
def command(out: Path | None, disk: Path | None, no_disk: bool, timeout_s: float, as_json: bool) -> None:
    """Measure this machine in about a minute, and write a hardware profile for `--hardware`.

    Quantities that cannot be measured are omitted, and the output says why. Run nothing else meanwhile.
    """
    if out is not None:
        _check_out(out)
    folder = None if no_disk else disk or Path(tempfile.gettempdir())
    findings = probe(
        disk_folder=folder,
        timeout_s=timeout_s,
        on_part=lambda what: click.echo(f"measuring {what}", err=True),
    )
    result = probed(
        findings,
        date=datetime.date.today().isoformat(),
        versions={name: metadata.version(name) for name in _VERSIONS},
    )
    text = to_toml(result)
    if out is not None:
        write_atomically(out, text.encode())
    if as_json:
        show_json(result)
        return
    _show(result)
    if out is not None:
        show_text(f"written: {out}")


def _check_out(out: Path) -> None:
    """Raise an error for a path to which no profile can be written, before anything is measured."""
    if out.suffix != ".toml":
        raise InvalidInputError(f"a profile's file ends in .toml, which {out} does not: name it {out}.toml")
    try:
        make_room_for(out)
    except OSError as error:
        raise InvalidInputError(
            f"cannot write the profile {out.name} into {out.parent}: {error.strerror}"
        ) from error


def _show(result: Probed) -> None:
    show_text(result.description)
    columns = (
        Column("quantity"),
        Column("measured", is_number=True),
        Column("spread", is_number=True),
        Column("method", wraps=True),
    )
    rows = [
        (
            f"{table}.{key}",
            format_by_unit(f"{table}.{key}", one.value, plain=".3g"),
            f"{one.spread:.0%}",
            one.method,
        )
        for table, entries in result.tables.items()
        for key, one in entries.items()
        if isinstance(one, Measurement)
    ]
    show_table(columns, rows)
    show_text(*result.missing)
