"""`deepspeed`: int8 pre-shards for kernel injection, every weight a list of codes and of its rows' scales.

Codes and scales are those that DeepSpeed's own GroupQuantizer gives for a rank's slice: int8 `[out_r, in]`,
and one float32 scale for every row of the slice, `[out_r, 1]`. Rows that are cut keep their scales; a weight
whose columns are cut has as many scales for each of its rows as there are ranks: shards are for one degree.
Other groups are not written: the kernel decodes whole rows, and a group of several would straddle heads.

GroupQuantizer's table has three columns, `[out_r, 3]`, where the kernel reads the first `out_r` numbers and
the loader gives the rest to shards that it cuts in two. Those were not the scales that the codes were made
with. They are left out here, so that DeepSpeed's loader stops at another degree ("larger TP-size") where it
would silently load wrong weights.

DeepSpeed 0.19.8 does not run them: `init_inference` refuses `dtype=torch.int8` before it comes to its loader.

Source: DeepSpeed 0.19.8, `module_inject/replace_module.py` and `load_checkpoint.py`,
`csrc/transformer/inference/csrc/dequantize.cu`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from reshard.architectures.schema import Role
from reshard.encoding import Encoded, Encoder
from reshard.errors import CannotSplitError, UnsupportedTargetError
from reshard.formats.base import Source
from reshard.formats.injected import check_family
from reshard.layout import Box
from reshard.rules import Rules, check_heads
from reshard.tensors import LogicalTensor

from ..groups import blocks, rows
from ..scheme import Groups
from ..select import Decision
from .base import Output
from .encoders import RowEncoder
from .plain import METHOD, SCALE

#: Whose rows, and whose columns, the ranks share out.
_BY_ROWS: Final[tuple[Role, ...]] = ("query", "key", "value", "query_key_value", "mlp_up")
_BY_COLUMNS: Final[tuple[Role, ...]] = ("attention_output", "mlp_output")


def output(source: Source, *, tp_size: int, allow_nonfinite: bool = False) -> Output:
    """The format, for one checkpoint and one degree; it has one scheme.

    Args:
        source: the plain checkpoint, whose family's table says how a weight is cut.
        tp_size: the degree; the request must have it as its only one.
        allow_nonfinite: take NaN and infinities for zero.

    Raises:
        UnsupportedTargetError: a family that DeepSpeed's kernel injection cannot load from pre-shards.
        CannotSplitError: the degree cuts heads.
    """
    check_family(source.model.model_type)
    check_heads(source.model, tp_size)
    rules = Rules(source.model, source.tensors)

    def parts(name: str, tensor: LogicalTensor) -> int:
        return _parts(rules, name, tensor, tp_size)

    def derived(name: str, tensor: LogicalTensor) -> dict[str, LogicalTensor]:
        scales = LogicalTensor(dtype="float32", shape=(tensor.shape[0], parts(name, tensor)))
        return {name: LogicalTensor(dtype="int8", shape=tensor.shape), _scale(name): scales}

    def encoder(name: str, tensor: LogicalTensor) -> Encoder:
        numel = tensor.shape[1] // parts(name, tensor)

        def encode(box: Box, block: blocks.Block) -> Iterable[Encoded]:
            encoded = rows.encode(block, group_numel=numel)
            scales = encoded.scales.reshape(block.shape[0], -1)
            yield name, box, encoded.codes
            yield _scale(name), (box[0], (0, scales.shape[1])), scales

        return RowEncoder(name, tensor.dtype, encode, allow_nonfinite=allow_nonfinite)

    def config(_: Source, decisions: Mapping[str, Decision]) -> dict[str, Any]:
        return _config(decisions, tp_size)

    return Output(name="deepspeed", target="deepspeed", derived=derived, encoder=encoder, config=config)


def _scale(name: str) -> str:
    return f"{name.removesuffix('.weight')}.{SCALE}"


def _parts(rules: Rules, name: str, tensor: LogicalTensor, tp_size: int) -> int:
    """How many ranks share one row of a weight."""
    role = rules.rule(name).role
    if role in _BY_ROWS:
        return 1
    if role not in _BY_COLUMNS:
        raise UnsupportedTargetError(
            f"{name}: DeepSpeed's int8 is for the Linears of blocks, and the {role} is none; leave it out of "
            "`include`"
        )
    if tensor.shape[1] % tp_size:
        raise CannotSplitError(
            f"{name}: its {tensor.shape[1]} columns cannot be shared out over tp_size={tp_size}; take a "
            "degree that divides them and the heads"
        )
    return tp_size


def _config(decisions: Mapping[str, Decision], tp_size: int) -> dict[str, Any]:
    left = [
        d.name
        for d in decisions.values()
        if d.role in (*_BY_ROWS, *_BY_COLUMNS) and d.name.endswith(".weight") and not d.is_quantized
    ]
    if left:
        raise UnsupportedTargetError(
            f"{left[0]} would stay as it is, and DeepSpeed's int8 blocks have all their weights in int8: its "
            "loader would quantize it with the number of groups of another; leave out `exclude`"
        )
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None}
    modules = [d.module for d in decisions.values() if d.is_quantized]
    return {
        "quant_method": METHOD,
        "format": "deepspeed",
        "tp_size": tp_size,
        "scheme": msgspec.to_builtins(Groups(group_size=None)),
        "config_groups": {"group_0": {"targets": modules, "weights": weights}},
    }
