"""The published measurements: `published.csv` has one row for each number of each source."""

import csv
from importlib import resources
from typing import Final

import msgspec

#: Value of a row whose run went out of memory.
OUT_OF_MEMORY: Final = "OOM"


class PublishedRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published number, as in its source; an empty cell is an empty string.

    Attributes:
        source: where it was published.
        model, runtime, dtype, hardware: as named in the source.
        n_gpus: number of GPUs used.
        offload: `none`, `cpu` or `cpu+disk`.
        batch: batch size; where every GPU has a stream of its own, the batch size of each stream.
        prompt_len, gen_len: lengths in tokens, where published.
        metric: name of the measured quantity, a key of `planner.accuracy.compare.KINDS`.
        value: the number, or `OOM`.
        unit: unit of the number.
        notes: other remarks of the source.
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
        """Whether the run went out of memory."""
        return self.value == OUT_OF_MEMORY

    @property
    def batch_size(self) -> int:
        """The batch size; 1 where the row does not depend on it."""
        return int(self.batch or 1)


def rows() -> tuple[PublishedRow, ...]:
    """Every row, in the file's order."""
    text = resources.files("planner.accuracy").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(msgspec.convert(row, PublishedRow) for row in csv.DictReader(text.splitlines()))
