"""Names of files and keys in transformers' distributed shards. Pure."""

import re
from typing import Final

#: Number of the shard, of its part, and how many parts it has.
FILE_NAME: Final = re.compile(r"shard-(\d{5})-model-(\d{5})-of-(\d{5})\.safetensors")
OFFSETS_KEY: Final = "DCP_SHARDING_INFO"


def evidence(names: tuple[str, ...]) -> tuple[str, ...]:
    """The files that are distributed shards."""
    return tuple(n for n in names if FILE_NAME.fullmatch(n))


def rank_of(file: str) -> int:
    """The rank whose shard a file of that name is, from 0 on."""
    match = FILE_NAME.fullmatch(file)
    assert match is not None
    return int(match[1]) - 1
