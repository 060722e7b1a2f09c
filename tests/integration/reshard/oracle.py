"""How every family's shards must look, in plain torch on whole tensors.

Written from the modeling code and from how DeepSpeed's AutoTP cuts; it shares nothing with the package.
"""

import re
from collections.abc import Callable
from typing import Final

import torch

from fixtures.families import FAMILIES

from .variants import Tensors, Variant


def rank_shard(variant: Variant, tensors: Tensors, tp_size: int, tp_rank: int) -> Tensors:
    """What rank `tp_rank` of `tp_size` must hold of a merged checkpoint."""
    if tp_size == 1:
        return tensors
    oracle = _Oracle(variant, tp_size, tp_rank)
    return {name: oracle.part(name, tensor) for name, tensor in tensors.items()}


class _Oracle:
    def __init__(self, variant: Variant, tp_size: int, tp_rank: int) -> None:
        self.variant, self.tp_size, self.tp_rank = variant, tp_size, tp_rank

    def part(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        for pattern, kind in _TABLES[FAMILIES[self.variant.family].model_type].items():
            if re.fullmatch(pattern, name):
                return kind(self, tensor)
        assert re.search(_WHOLE, name), f"the oracle does not know {name}"
        return tensor

    def evenly(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        return tensor.tensor_split(self.tp_size, dim)[self.tp_rank]

    def columns(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of a weight; a bias is added after the sum over ranks, whole."""
        return tensor if tensor.dim() == 1 else self.evenly(tensor, 1)

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of a Conv1D's row-parallel weight."""
        return tensor if tensor.dim() == 1 else self.evenly(tensor, 0)

    def last(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.evenly(tensor, -1)

    def heads(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.evenly(tensor.unflatten(0, (self.variant.heads, -1))).flatten(0, 1)

    def kv(self, tensor: torch.Tensor) -> torch.Tensor:
        kv_heads = self.variant.kv_heads
        heads = tensor.unflatten(0, (kv_heads, -1))
        if kv_heads >= self.tp_size:
            return self.evenly(heads).flatten(0, 1)
        return heads[self.tp_rank // (self.tp_size // kv_heads)]

    def head_blocks(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.evenly(tensor.unflatten(0, (self.variant.heads, 3 * self.variant.head_dim))).flatten(0, 1)

    def three(self, tensor: torch.Tensor) -> torch.Tensor:
        query = self.variant.heads * self.variant.head_dim
        q, k, v = tensor.split([query, *([(tensor.shape[0] - query) // 2] * 2)])
        return torch.cat([self.heads(q), self.kv(k), self.kv(v)])

    def three_on_columns(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.evenly(part, -1) for part in tensor.chunk(3, -1)], -1)

    def groups(self, tensor: torch.Tensor) -> torch.Tensor:
        variant = self.variant
        groups = tensor.unflatten(0, (variant.kv_heads, -1, variant.head_dim))
        if variant.kv_heads >= self.tp_size:
            return self.evenly(groups).flatten(0, 2)
        ranks = self.tp_size // variant.kv_heads
        group = groups[self.tp_rank // ranks]
        return torch.cat([group[:-2].chunk(ranks)[self.tp_rank % ranks], group[-2:]]).flatten(0, 1)

    def four_blocks(self, tensor: torch.Tensor) -> torch.Tensor:
        variant = self.variant
        blocks = tensor.unflatten(0, (4, 3, variant.heads // 4, variant.head_dim))
        # The forward joins the blocks' heads: head h of the model is number h % (heads / 4) of its block.
        whole = blocks.transpose(0, 1).flatten(1, 2)
        mine = self.evenly(whole, 1).unflatten(1, (4, -1))
        return mine.transpose(0, 1).flatten(0, 3)

    def two(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.evenly(half) for half in tensor.chunk(2)])


_Kind = Callable[[_Oracle, torch.Tensor], torch.Tensor]

_ANY: Final = r"(.*\.)?"
_PARAM: Final = r"\.(weight|bias)"
_HEAD: Final[dict[str, _Kind]] = {r"(lm_head|embed_out)" + _PARAM: _Oracle.columns}


def _table(**kinds: _Kind) -> dict[str, _Kind]:
    """Last segments of module names, `__` for a dot → kind."""
    found = {_ANY + name.replace("__", r"\.") + _PARAM: kind for name, kind in kinds.items()}
    return found | _HEAD


_LLAMA_TABLE: Final = _table(
    q_proj=_Oracle.heads,
    k_proj=_Oracle.kv,
    v_proj=_Oracle.kv,
    o_proj=_Oracle.columns,
    gate_proj=_Oracle.evenly,
    up_proj=_Oracle.evenly,
    down_proj=_Oracle.columns,
)

_FUSED_TABLE: Final = _table(
    query_key_value=_Oracle.head_blocks,
    dense=_Oracle.columns,
    dense_h_to_4h=_Oracle.evenly,
    dense_4h_to_h=_Oracle.columns,
)

_GPTJ_TABLE: Final = _table(
    q_proj=_Oracle.heads,
    k_proj=_Oracle.heads,
    v_proj=_Oracle.heads,
    out_proj=_Oracle.columns,
    c_fc=_Oracle.evenly,
    c_proj=_Oracle.columns,
    fc_in=_Oracle.evenly,
    fc_out=_Oracle.columns,
    fc1=_Oracle.evenly,
    fc2=_Oracle.columns,
)


def _falcon(oracle: _Oracle, tensor: torch.Tensor) -> torch.Tensor:
    if oracle.variant.family == "falcon-grouped":
        return oracle.groups(tensor)
    return (oracle.three if oracle.variant.kv_heads == 1 else oracle.head_blocks)(tensor)


def _bigcode(oracle: _Oracle, tensor: torch.Tensor) -> torch.Tensor:
    return (oracle.three if oracle.variant.kv_heads == 1 else oracle.head_blocks)(tensor)


_TABLES: Final[dict[str, dict[str, _Kind]]] = {
    "bert": {
        r".*\.layer\.\d+\.attention\.self\.(query|key|value)" + _PARAM: _Oracle.heads,
        r".*\.layer\.\d+\.(attention\.)?output\.dense" + _PARAM: _Oracle.columns,
        r".*\.layer\.\d+\.intermediate\.dense" + _PARAM: _Oracle.evenly,
    },
    "bloom": _FUSED_TABLE,
    "codegen": _table(qkv_proj=_Oracle.four_blocks) | _GPTJ_TABLE,
    "falcon": _FUSED_TABLE | _table(query_key_value=_falcon),
    "gpt2": {
        _ANY + r"c_attn" + _PARAM: _Oracle.three_on_columns,
        _ANY + r"c_fc" + _PARAM: _Oracle.last,
        _ANY + r"c_proj" + _PARAM: _Oracle.rows,
    }
    | _HEAD,
    "gpt_bigcode": _table(c_attn=_bigcode) | _GPTJ_TABLE,
    "gpt_neox": _FUSED_TABLE,
    "mpt": _table(
        Wqkv=_Oracle.three, out_proj=_Oracle.columns, up_proj=_Oracle.evenly, down_proj=_Oracle.columns
    ),
    "phi": _table(dense=_Oracle.columns, fc1=_Oracle.evenly, fc2=_Oracle.columns) | _LLAMA_TABLE,
    "phi3": _table(qkv_proj=_Oracle.three, gate_up_proj=_Oracle.two) | _LLAMA_TABLE,
    "t5": _table(
        q=_Oracle.heads,
        k=_Oracle.heads,
        v=_Oracle.heads,
        o=_Oracle.columns,
        relative_attention_bias=_Oracle.last,
        wi=_Oracle.evenly,
        wi_0=_Oracle.evenly,
        wi_1=_Oracle.evenly,
        wo=_Oracle.columns,
    ),
    "mixtral": _table(w1=_Oracle.evenly, w3=_Oracle.evenly, w2=_Oracle.columns) | _LLAMA_TABLE,
    **dict.fromkeys(("gptj", "gpt_neo", "opt"), _GPTJ_TABLE),
    **dict.fromkeys(
        ("gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "stablelm"), _LLAMA_TABLE
    ),
}

#: What every rank holds whole: embeddings, norms, routers, and the small Linears around the blocks.
_WHOLE: Final = (
    r"(norm|LayerNorm|layernorm|ln_\w+|ln_f|norm_\w|embeddings?|embed_\w+|wte|wpe|shared|gate|project_\w+"
    r"|cls\.predictions(\.decoder|\.transform\.dense)?)\.(weight|bias)$"
)
