"""`serving.properties` as DJL Serving reads it: Java's properties, and which keys and values it knows. Pure.

DJL passes a key that it does not know on to the handler and says nothing, so a misspelt one is found here or
never. The table of keys names the document, or the code, that each was read in.
"""

import difflib
import functools
from collections.abc import Mapping
from importlib import resources
from typing import Final

import msgspec

from planner.errors import InvalidInputError

_TABLE: Final = "djl_keys.json"
_ESCAPED: Final = str.maketrans({"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"})


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one key takes.

    Attributes:
        where: which of the table's documents says so.
        type: `integer`, `boolean`, `devices` or `text`.
        values: the words that it takes, where they are few.
    """

    where: str
    type: str = "text"
    values: tuple[str, ...] = ()


class DjlKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All keys.

    Attributes:
        source: repository, commit, date and version that were read.
        documents: short name → file in that repository.
        keys: by name.
    """

    source: dict[str, str]
    documents: dict[str, str]
    keys: dict[str, Key]


@functools.cache
def table() -> DjlKeys:
    """The keys that DJL Serving documents for a Python model."""
    return msgspec.json.decode((resources.files("planner.serving") / _TABLE).read_bytes(), type=DjlKeys)


def encode(properties: Mapping[str, str]) -> bytes:
    """The file.

    Raises:
        InvalidInputError: a key or a value that DJL would not take for what it is meant to be.
    """
    problems = check(properties)
    if problems:
        raise InvalidInputError("; ".join(problems))
    return "".join(f"{key}={value.translate(_ESCAPED)}\n" for key, value in properties.items()).encode(
        "ascii"
    )


def check(properties: Mapping[str, str]) -> list[str]:
    """What is wrong with keys and values, a clause each."""
    return [
        problem
        for key, value in properties.items()
        for problem in [_problem(key, value)]
        if problem is not None
    ]


def _problem(key: str, value: str) -> str | None:
    known = table().keys.get(key)
    if known is None:
        near = difflib.get_close_matches(key, table().keys, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"DJL Serving knows no key {key!r}{hint}"
    if known.values and value not in known.values:
        return f"{key} is one of {', '.join(known.values)}, not {value!r}"
    fits = {
        "integer": value.lstrip("-").isdecimal() or (key.endswith("_degree") and value == "max"),
        "boolean": value in ("true", "false"),
        "devices": all(part.removeprefix("gpu").removeprefix("-").isdecimal() for part in value.split(";")),
        "text": value == value.strip() and value.isascii() and value.isprintable(),
    }
    words = {
        "integer": "an integer",
        "boolean": "true or false",
        "devices": "devices, as in 0;1",
        "text": "a word",
    }
    return None if fits[known.type] else f"{key} takes {words[known.type]}, not {value!r}"
