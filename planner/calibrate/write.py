"""A profile's file with other values of some terms; everything else in it stays, comments included."""

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from planner.errors import ProfileError


def rewritten(text: str, values: Mapping[str, float], note: str) -> str:
    """The file's text with terms replaced.

    Args:
        text: TOML of a machine.
        values: dotted key (`host.op_overhead_s`) → value.
        note: what each changed number says of itself; its former value is added.

    Raises:
        ProfileError: the file has no such table, or not in lines that can be replaced.
    """
    for key, value in values.items():
        text = _replaced(text, key, value, note)
    return text


def _replaced(text: str, key: str, value: float, note: str) -> str:
    table, _, field = key.rpartition(".")
    former = _table(tomllib.loads(text), table).get(field)
    said = note if former is None else f"{note}; before: {former['value']:.5g}, {former.get('note', '')}"
    line = f'{field} = {{ value = {value:.5g}, source = "measured", note = {_quoted(said)} }}'
    lines = text.splitlines()
    start = _line_of(lines, f"[{table}]", 0, len(lines))
    if start is None:
        raise ProfileError(f"the profile has no table [{table}], so {key} cannot be calibrated in it")
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("[")), len(lines))
    place = next((i for i in range(start + 1, end) if lines[i].split("=")[0].strip() == field), None)
    if place is None:
        lines.insert(start + 1, line)
    else:
        lines[place] = line
    result = "\n".join(lines) + "\n"
    _check(result, table, field, value)
    return result


def _table(data: dict[str, Any], name: str) -> dict[str, Any]:
    """A table by its dotted name; empty where there is none."""
    for part in name.split("."):
        inner = data.get(part)
        data = inner if isinstance(inner, dict) else {}
    return data


def _line_of(lines: list[str], wanted: str, start: int, end: int) -> int | None:
    return next((i for i in range(start, end) if lines[i].strip() == wanted), None)


def _check(text: str, table: str, field: str, value: float) -> None:
    try:
        found = float(_table(tomllib.loads(text), table)[field]["value"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ProfileError(
            f"{table}.{field} is written over several lines; put it on one line, as planner probe does"
        ) from error
    if abs(found - value) > 1e-4 * value:
        raise ProfileError(f"{table}.{field} stands in the file more than once; keep one")


def _quoted(text: str) -> str:
    """A basic string of TOML, whose escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)
