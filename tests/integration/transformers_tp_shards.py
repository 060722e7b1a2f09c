"""Tiny checkpoints and their distributed shards, for the tests of transformers' tensor parallelism."""

from pathlib import Path
from typing import Final

import pytest

from fixtures import families, tiny
from reshard.job import Request
from reshard.run import reshard

#: As many that two and four ranks have whole ones, and still fewer for keys and values.
_HEADS: Final = {"num_attention_heads": 8, "num_key_value_heads": 4}


def shard(number: int) -> str:
    """The name of shard `number`, counted from one."""
    return f"shard-{number:05d}-model-00001-of-00001.safetensors"


def cut(source: Path, tp_size: int, output: Path) -> Path:
    """Write a checkpoint's shards as the `transformers` target does."""
    reshard(Request(source=str(source), output=output, degrees=(tp_size,), format="transformers"))
    return output


def save(family: str, folder: Path) -> Path:
    """Write the family's tiny checkpoint, with heads enough for four ranks."""
    spec = families.FAMILIES[family]
    more = {name: heads for name, heads in _HEADS.items() if name in spec.settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, family, spec._replace(settings=spec.settings | more))
        return tiny.save(family, folder)
