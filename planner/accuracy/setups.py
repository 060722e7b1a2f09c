"""The model, machine and configuration of each published row: `setups.toml`."""

from functools import cache
from importlib import resources

import msgspec

from planner.accuracy.published import PublishedRow
from planner.errors import BadFileError


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of published rows with the same setup.

    Attributes:
        rows: column of `published.csv` → value; a row belongs to the group if all these columns match.
        reason: why the cost model cannot predict these rows; empty if it can.
        model: name of a model known to the planner.
        machine: name of a file in `machines/`, or of a hardware profile.
        dtype: dtype of weights, activations and KV cache.
        configuration: how the model is run: a key of `planner.accuracy.configurations.CONFIGURATIONS`.
        prompt_tokens, new_tokens: lengths in the source's script.
        note: further information taken from the source.
    """

    rows: dict[str, str]
    reason: str = ""
    model: str = ""
    machine: str = ""
    dtype: str = ""
    configuration: str = ""
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
    """All groups, in the file's order."""
    payload = resources.files("planner.accuracy").joinpath("setups.toml").read_bytes()
    return tuple(msgspec.toml.decode(payload, type=_File).setup)


def setup_of(row: PublishedRow) -> Setup:
    """The group that a row belongs to.

    Raises:
        BadFileError: no group covers the row. Every row needs one, even if it only states a `reason`.
    """
    for setup in setups():
        if setup.covers(row):
            return setup
    raise BadFileError(f"no setup covers the published row {row.model}, {row.runtime}, {row.dtype}")


def machine_file(name: str) -> str:
    """The argument of `planner.hardware.load.load` for the name of a setup's machine."""
    path = resources.files("planner.accuracy") / "machines" / f"{name}.toml"
    return str(path) if path.is_file() else name
