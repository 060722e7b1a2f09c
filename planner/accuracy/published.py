"""The published measurements, as data: `published.csv`, one row for each number of each source."""

import csv
from importlib import resources
from typing import Final

import msgspec

#: What a row says instead of a number when the run went out of memory.
OUT_OF_MEMORY: Final = "OOM"


class PublishedRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published number, as its source has it; an empty cell is an empty string.

    Attributes:
        source: where it was published.
        model, runtime, dtype, hardware: in the source's words.
        n_gpus: GPUs used.
        offload: `none`, `cpu` or `cpu+disk`.
        batch: sequences together (of each stream, where every GPU has one).
        prompt_len, gen_len: lengths, where published.
        metric: what was measured.
        value: the number, or `OOM`.
        unit: of the number.
        notes: whatever else was said.
    """

    source: str
    model: str
    runtime: str
    dtype: str
    hardware: str
    n_gpus: str
    offload: str
    batch: str
    prompt_len: str
    gen_len: str
    metric: str
    value: str
    unit: str
    notes: str

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the run did not fit."""
        return self.value == OUT_OF_MEMORY

    @property
    def batch_size(self) -> int:
        """The batch, 1 where the row does not depend on it."""
        return int(self.batch or 1)


def rows() -> tuple[PublishedRow, ...]:
    """Every row, in the file's order."""
    text = resources.files("planner.accuracy").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(msgspec.convert(row, PublishedRow) for row in csv.DictReader(text.splitlines()))
