"""Writes new values of some terms into the text of a profile's file; the rest of the text is kept."""

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from planner.errors import ProfileError


def rewritten(text: str, values: Mapping[str, float], note: str) -> str:
    """The file's text with new values of some terms.

    Args:
        text: text of a profile's TOML file.
        values: dotted key, such as `host.op_overhead_s` → new value.
        note: note of each changed number; the former value and note are appended to it.

    Raises:
        ProfileError: the file does not have the table of a term, or the term is not on one line.
    """
    for key, value in values.items():
        text = _replaced(text, key, value, note)
    return text


def _replaced(text: str, key: str, value: float, note: str) -> str:
    table, _, field = key.rpartition(".")
    former = _table(tomllib.loads(text), table).get(field)
    full_note = note if former is None else f"{note}; before: {former['value']:.5g}, {former.get('note', '')}"
    line = f'{field} = {{ value = {value:.5g}, source = "measured", note = {_quoted(full_note)} }}'
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
    """A table by its dotted name; empty if there is none."""
    for part in name.split("."):
        inner = data.get(part)
        data = inner if isinstance(inner, dict) else {}
    return data


def _line_of(lines: list[str], wanted: str, start: int, end: int) -> int | None:
    return next((i for i in range(start, end) if lines[i].strip() == wanted), None)


def _check(text: str, table: str, field: str, value: float) -> None:
    try:
        written = float(_table(tomllib.loads(text), table)[field]["value"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ProfileError(
            f"{table}.{field} spans several lines; put it on one line, as planner probe does"
        ) from error
    if abs(written - value) > 1e-4 * value:
        raise ProfileError(f"{table}.{field} is in the file more than once; keep one")


def _quoted(text: str) -> str:
    """A TOML basic string; its escapes are the same as in JSON."""
    return json.dumps(text, ensure_ascii=False)
