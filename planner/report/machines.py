"""Machines that were compared, as cells of a table."""

from planner.search.compare_machines import Machine
from planner.sizes import format_dollars, format_seconds


def machine_cells(machine: Machine) -> tuple[str, ...]:
    """Machine, $/hour, $ per million tokens, tokens/s, batch, step and configuration; or why it cannot."""
    hourly = "" if machine.usd_per_hour is None else f"{machine.usd_per_hour:,.2f}"
    if not machine.fits:
        return (machine.hardware, hourly, "", "", "", "", machine.reason)
    price = machine.usd_per_million_tokens
    return (
        machine.hardware,
        hourly,
        "" if price is None else format_dollars(price),
        f"{machine.tokens_per_s:.3g}",
        str(machine.batch_size),
        format_seconds(machine.decode_s) if machine.decode_s else "",
        f"{machine.label}, {machine.dtype}",
    )
