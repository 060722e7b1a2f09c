"""Names of parameters with `*` for numbers, so that equal layers need one entry. Pure."""

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")


def pattern_of(name: str) -> str:
    """`h.3.attn.weight` → `h.*.attn.weight`."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def folded(
    values: Mapping[str, _Value], keys: Mapping[str, Hashable], every: Iterable[str]
) -> dict[str, _Value]:
    """One entry per pattern where all names that it matches have equal values, else one per name.

    Args:
        values: name → value.
        keys: name → what must be equal for two values to be represented by one.
        every: all names of the model; a pattern is used only when each name that it matches has a value.
    """
    members: dict[str, list[str]] = {}
    for name in every:
        members.setdefault(pattern_of(name), []).append(name)
    by_pattern: dict[str, _Value] = {}
    for pattern, names in members.items():
        with_value = [name for name in names if name in values]
        if len(names) > 1 and len(with_value) == len(names) and len({keys[n] for n in names}) == 1:
            by_pattern[pattern] = values[names[0]]
        else:
            by_pattern |= {name: values[name] for name in with_value}
    return by_pattern
