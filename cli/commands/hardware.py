"""`planner hardware`: lists the hardware profiles, or shows the numbers of one with their sources."""

from typing import Final

import click

from planner.hardware.files import quantities
from planner.hardware.load import load, names
from planner.schema.hardware import HardwareProfile
from planner.sizes import format_by_unit

from ..completion import hardware_profiles
from ..options import output_options
from ..render import Column, show_json, show_table, show_text

_GB: Final = 1e9
_GIB: Final = 2.0**30


@click.group(name="hardware")
def command() -> None:
    """List the hardware profiles, or show one."""


@command.command(name="list")
@output_options
def list_profiles(as_json: bool) -> None:
    """List the machines that come with the planner.

    Several GPUs of one kind are written as a count, for example 8xa100-80g.
    """
    profiles = [load(name) for name in names()]
    if as_json:
        show_json(profiles)
        return
    columns = (
        Column("name"),
        Column("GPUs", wraps=True),
        Column("each GiB", is_number=True),
        Column("host GiB", is_number=True),
        Column("link GB/s", is_number=True),
        Column("NVMe GB", is_number=True),
        Column("$/h", is_number=True),
    )
    show_table(columns, [_row(profile) for profile in profiles])


@command.command(name="show")
@click.argument("name", shell_complete=hardware_profiles)
@output_options
def show_profile(name: str, as_json: bool) -> None:
    """Show every number of a profile with its source.

    NAME is a profile, a count such as 4xt4, or a .toml file.
    """
    profile = load(name)
    if as_json:
        show_json(profile)
        return
    show_text(f"{profile.name}: {profile.description}")
    columns = (
        Column("quantity", wraps=True),
        Column("value", is_number=True),
        Column("source"),
        Column("note", wraps=True),
    )
    counts = [("num_gpus", str(profile.num_gpus), "", "")]
    if profile.num_gpus:
        counts.append(("gpus_per_host", str(profile.host_gpus), "", "at most; more GPUs need several hosts"))
    rows = [
        (path, format_by_unit(path, one.value), one.source.value, one.note)
        for path, one in quantities(profile)
    ]
    show_table(columns, [*counts, *rows])


def _row(profile: HardwareProfile) -> tuple[str, ...]:
    gpu, disk, link, price = profile.gpu, profile.disk, profile.host_to_device, profile.usd_per_hour
    return (
        profile.name,
        "none" if gpu is None else f"{profile.num_gpus} × {gpu.name}",
        "" if gpu is None else f"{gpu.memory_bytes.value / _GIB:.1f}",
        f"{profile.host.memory_bytes.value / _GIB:.0f}",
        "" if link is None else f"{link.pinned_bytes_per_s.value / _GB:.1f}",
        "" if disk is None else f"{disk.capacity_bytes.value / _GB:.0f}",
        "" if price is None else f"{price.value:.2f}",
    )
