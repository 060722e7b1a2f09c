"""`serving.properties` as DJL Serving reads it: Java properties, and the keys and values that it knows. Pure.

DJL passes a key that it does not know on to the handler without a message, so a misspelt key would never be
noticed; it is checked here. The table of keys names the document, or the code, that documents each.
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
    """The values of one key.

    Attributes:
        where: short name of the document that describes the key.
        type: `integer`, `boolean`, `devices` or `text`.
        values: the allowed values, where they are listed; otherwise empty.
    """

    where: str
    type: str = "text"
    values: tuple[str, ...] = ()


class DjlKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table of all keys.

    Attributes:
        source: repository, commit, date and version that the keys were read from.
        documents: short name → file in that repository.
        keys: name → the key's values.
    """

    source: dict[str, str]
    documents: dict[str, str]
    keys: dict[str, Key]


@functools.cache
def table() -> DjlKeys:
    """The keys that DJL Serving documents for a Python model."""
    return msgspec.json.decode((resources.files("planner.serving") / _TABLE).read_bytes(), type=DjlKeys)


def encode(properties: Mapping[str, str]) -> bytes:
    """The content of the file.

    Raises:
        InvalidInputError: DJL Serving does not know a key, or would not accept a value.
    """
    problems = check(properties)
    if problems:
        raise InvalidInputError("; ".join(problems))
    return "".join(f"{key}={value.translate(_ESCAPED)}\n" for key, value in properties.items()).encode(
        "ascii"
    )


def check(properties: Mapping[str, str]) -> list[str]:
    """The errors in keys and values, a clause each."""
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
