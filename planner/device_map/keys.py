"""How transformers and Accelerate interpret the keys of a device map, computed without either library.

Accelerate places modules: a key covers the module of that name and all its submodules. transformers places
tensors while it loads: it joins all keys into one regular expression and takes the first that matches a
prefix of a tensor's name, so that `h.1` also matches `h.10.weight` unless a longer key does. A map is correct
only when both interpretations agree.
"""

import re
from collections.abc import Iterable, Mapping

#: A device in a map: a GPU's index, `cpu` or `disk`.
Device = str | int


def join(module: str, name: str) -> str:
    """The fqn of the tensor or submodule `name` of `module`; the root module is ""."""
    return f"{module}.{name}" if module else name


def covers(key: str, fqn: str) -> bool:
    """Whether `key` is `fqn` or one of its ancestors; "" covers everything."""
    return not key or fqn == key or fqn.startswith(key + ".")


def ancestors(fqn: str) -> list[str]:
    """Every module that contains `fqn`, the root "" first."""
    parts = fqn.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))] if fqn else []


def covering_keys(fqn: str, device_map: Mapping[str, Device]) -> list[str]:
    """The keys that cover `fqn`, the shortest first."""
    return [key for key in (*ancestors(fqn), fqn) if key in device_map]


def loaded_onto(device_map: Mapping[str, Device], tensors: Iterable[str]) -> dict[str, tuple[str, Device]]:
    """Where transformers puts each tensor while loading: tensor fqn → (text that matched, device).

    Source: transformers.integrations.accelerate.expand_device_map (5.23): keys with more dots first, longer
    ones first among those, unescaped, matched as prefixes; a tensor that no key matches goes to the device of
    "", else to the CPU.
    """
    by_depth = sorted(device_map, key=lambda key: (key.count("."), len(key)), reverse=True)
    pattern = re.compile("|".join(f"({key})" for key in by_depth))
    default = device_map.get("", "cpu")
    result: dict[str, tuple[str, Device]] = {}
    for tensor in tensors:
        match = pattern.match(tensor)
        text = match.group() if match else ""
        result[tensor] = (text, device_map.get(text, default))
    return result
