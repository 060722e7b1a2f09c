"""Errors of libraries name the fields of their requests; a command line shows its own options instead."""

import re
from typing import Final

#: Field, as an error has it between backticks → option of `reshard` or `quantize`.
_OPTIONS: Final = {
    "config": "--config",
    "degrees": "--tp",
    "dtype": "--dtype",
    "format": "--format",
    "groups": "--groups",
    "jobs": "--jobs",
    "max_shard_bytes": "--max-shard-size",
    "memory_bytes": "--memory",
    "output": "--output",
    "overwrite": "--overwrite",
    "roles": "--roles",
}
_FIELD: Final = re.compile(r"`(\w+)`")


def with_options(sentence: str) -> str:
    """The sentence of an error, its fields replaced by the options that set them."""
    return _FIELD.sub(lambda field: _OPTIONS.get(field[1], field[0]), sentence)
