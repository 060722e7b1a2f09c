"""Which model, machine and way to run each published row stands for: `setups.toml`."""

from functools import cache
from importlib import resources

import msgspec

from planner.accuracy.published import PublishedRow
from planner.errors import BadFileError


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One group of rows.

    Attributes:
        rows: columns of `published.csv` and what they hold in these rows.
        reason: why the cost model has no answer for them, or empty when it has.
        model: a model known to the planner.
        machine: a file in `machines/`, or a profile's name.
        dtype: what everything is in.
        way: how it is run; see `planner.accuracy.configurations`.
        prompt_tokens, new_tokens: of the source's script.
        note: what was taken from the source besides the row.
    """

    rows: dict[str, str]
    reason: str = ""
    model: str = ""
    machine: str = ""
    dtype: str = ""
    way: str = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    note: str = ""

    def covers(self, row: PublishedRow) -> bool:
        """Whether a row belongs to this group."""
        return all(getattr(row, column) == value for column, value in self.rows.items())


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    setup: list[Setup]


@cache
def setups() -> tuple[Setup, ...]:
    """Every group, in the file's order."""
    payload = resources.files("planner.accuracy").joinpath("setups.toml").read_bytes()
    return tuple(msgspec.toml.decode(payload, type=_File).setup)


def setup_of(row: PublishedRow) -> Setup:
    """The group that a row belongs to.

    Raises:
        BadFileError: none; every row must have one, if only to say why it is not priced.
    """
    for setup in setups():
        if setup.covers(row):
            return setup
    raise BadFileError(f"no setup covers the published row {row.model}, {row.runtime}, {row.dtype}")


def machine_file(name: str) -> str:
    """What `planner.hardware.load.load` takes for a setup's machine."""
    path = resources.files("planner.accuracy") / "machines" / f"{name}.toml"
    return str(path) if path.is_file() else name
