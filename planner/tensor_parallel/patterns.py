"""Names of parameters with `*` for numbers, so that what equal layers share is said once. Pure."""

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")


def pattern_of(name: str) -> str:
    """`h.3.attn.weight` → `h.*.attn.weight`."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def folded(
    values: Mapping[str, _Value], keys: Mapping[str, Hashable], every: Iterable[str]
) -> dict[str, _Value]:
    """`values` by pattern where a pattern says neither too much nor two things, else by name.

    Args:
        values: by name.
        keys: what must be equal for two values to be said once.
        every: all names that there are; a pattern must not match one that has no value.
    """
    members: dict[str, list[str]] = {}
    for name in every:
        members.setdefault(pattern_of(name), []).append(name)
    found: dict[str, _Value] = {}
    for pattern, names in members.items():
        with_value = [name for name in names if name in values]
        if len(names) > 1 and len(with_value) == len(names) and len({keys[n] for n in names}) == 1:
            found[pattern] = values[names[0]]
        else:
            found |= {name: values[name] for name in with_value}
    return found
