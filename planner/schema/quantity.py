"""Numbers with their source. A sum is as trustworthy as its least trustworthy part."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec


class Source(StrEnum):
    """How a number became known, from the most to the least trustworthy."""

    MEASURED = "measured"
    VENDOR = "vendor"
    PUBLISHED = "published"
    ASSUMED = "assumed"


_ORDER: Final = list(Source)


def weakest(sources: Iterable[Source]) -> Source:
    """The least trustworthy of `sources`; `measured` when there are none."""
    return max(sources, key=_ORDER.index, default=Source.MEASURED)


class Quantity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number in SI base units with its source. The unit is in the name of the field that holds it.

    Attributes:
        value: the number; finite and not negative.
        source: how it became known.
        note: details of the source, such as a datasheet, a benchmark or a date.
    """

    value: float
    source: Source
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.value < float("inf"):
            raise ValueError(f"a quantity must be finite and not negative, not {self.value}")
