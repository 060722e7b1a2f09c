"""Errors and notes of the libraries name fields of their requests; a command line shows its own options."""

import re
from typing import Final

#: Program → field, which a sentence has between backticks → option that is another word.
_OPTIONS: Final[dict[str, dict[str, str]]] = {
    "planner": {
        "batch_size": "--batch",
        "max_latency_s": "--max-latency",
        "num_gpus": "--gpus",
        "prompt_tokens": "--prompt",
        "runtimes": "--runtime",
        "server": "--serve",
    },
    "reshard": {"degrees": "--tp", "max_shard_bytes": "--max-shard-size", "memory_bytes": "--memory"},
    "quantize": {"max_shard_bytes": "--max-shard-size", "memory_bytes": "--memory", "tp_size": "--tp"},
}
#: Program → fields whose option is the same word.
_SAME: Final[dict[str, tuple[str, ...]]] = {
    "planner": (
        "checkpoint", "device_map", "ds_config", "dtype", "min_batch", "new_tokens", "nvme", "objective",
        "overwrite", "trust_remote_code", "weight_bits",
    ),
    "reshard": ("config", "dtype", "format", "groups", "jobs", "output", "overwrite", "roles"),
    "quantize": (
        "activations", "allow_nonfinite", "bits", "dequantize", "exclude", "format", "group_dim",
        "group_size", "groups", "include", "jobs", "mlp_extra_grouping", "output", "overwrite", "scheme",
    ),
}  # fmt: skip
_MENTION: Final = re.compile(r"`(\w+)(?:=([^`]*))?`")


def with_options(sentence: str, program: str) -> str:
    """A sentence with the fields that it names, such as `group_size=64` in backticks, as options.

    Args:
        sentence: of a library.
        program: `planner`, `reshard` or `quantize`; what is no field of its requests stays.
    """
    return _MENTION.sub(lambda mention: _option(mention, program), sentence)


def _option(mention: re.Match[str], program: str) -> str:
    field, value = mention[1], mention[2]
    same = f"--{field.replace('_', '-')}" if field in _SAME[program] else None
    option = _OPTIONS[program].get(field, same)
    if option is None:
        return mention[0]
    if value is None:
        return option
    # A shell would expand a pattern that stands without quotes.
    return f"{option} {value if '*' in value else value.strip(chr(39))}"
