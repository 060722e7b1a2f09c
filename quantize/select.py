"""Which tensors are quantized, and why the others are not: by the family's table, then by patterns."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from reshard.architectures.schema import Role
from reshard.formats.base import Source
from reshard.rules import Rule, Rules

from .errors import UnknownPatternError

_FLOATING: Final = ("float32", "float16", "bfloat16")
_LINEAR: Final[tuple[Role, ...]] = (
    "query", "key", "value", "query_key_value", "attention_output",
    "mlp_gate", "mlp_up", "mlp_gate_up", "mlp_output", "column", "row",
)  # fmt: skip
_REASONS: Final[dict[Role, str]] = {
    "embedding": "embeddings stay: they are looked up, not multiplied",
    "position": "embeddings stay: they are looked up, not multiplied",
    "head": "the head stays: its errors go straight into the logits",
    "head_bias": "no weight of a Linear",
    "replicated": "neither attention nor MLP: a router, or a buffer",
}


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to a tensor.

    Attributes:
        name: the tensor's.
        role: what the family's table says that it is.
        module: its module's name.
        is_quantized: whether it will be.
        reason: why, or why not.
    """

    name: str
    role: str
    module: str
    is_quantized: bool
    reason: str


def decide(source: Source, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> dict[str, Decision]:
    """A decision for every tensor of the checkpoint.

    Linears of the blocks are quantized; embeddings, norms, routers and the head are not.

    Args:
        source: the checkpoint.
        include: shell patterns of module or tensor names that are quantized as well, where that is possible.
        exclude: patterns of what is not; they win.

    Raises:
        UnknownArchitectureError: a tensor that the family's table does not mention.
        UnknownPatternError: a pattern that matches no tensor.
    """
    rules = Rules(source.model, source.tensors)
    included, excluded = tuple(include), tuple(exclude)
    decisions = {name: _decide(source, rules.rule(name), included, excluded) for name in source.tensors}
    for pattern in (*included, *excluded):
        if not any(_matches(pattern, d.name, d.module) for d in decisions.values()):
            raise UnknownPatternError(
                f"the pattern {pattern!r} matches no tensor of {source.folder.path('')}"
            )
    return decisions


def _decide(source: Source, rule: Rule, include: tuple[str, ...], exclude: tuple[str, ...]) -> Decision:
    is_quantized, reason = _possible(source, rule)
    is_wanted = any(_matches(p, rule.name, rule.module) for p in include)
    if is_quantized and rule.role not in _LINEAR:
        is_quantized = is_wanted
        reason = "included" if is_wanted else _REASONS.get(rule.role, "no Linear of a block")
    if is_quantized and any(_matches(p, rule.name, rule.module) for p in exclude):
        is_quantized, reason = False, "excluded"
    return Decision(
        name=rule.name, role=rule.role, module=rule.module, is_quantized=is_quantized, reason=reason
    )


def _possible(source: Source, rule: Rule) -> tuple[bool, str]:
    """Whether the tensor is the weight of a Linear at all."""
    tensor = source.tensors[rule.name]
    if rule.param != "weight" or len(tensor.shape) != 2:
        return False, "a norm" if "norm" in rule.role else "a bias, or no matrix"
    if tensor.dtype not in _FLOATING:
        return False, f"it is {tensor.dtype} already"
    if rule.entry.conv1d:
        return False, "a Conv1D, stored [in, out]: runtimes take quantized Linears only"
    return True, "a Linear of a block"


def _matches(pattern: str, name: str, module: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(module, pattern)


def quantized(decisions: Mapping[str, Decision]) -> tuple[str, ...]:
    """The names of the tensors that are quantized."""
    return tuple(name for name, d in decisions.items() if d.is_quantized)
