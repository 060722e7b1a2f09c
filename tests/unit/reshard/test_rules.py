"""From names to roles to cuts: what is known is cut in one way, what is not is refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import (
    CannotSplitError,
    DamagedFileError,
    InconsistentShardsError,
    UnknownArchitectureError,
)
from reshard.model import Model, parse_model
from reshard.rules import Policy, Rules, check_heads, logical_shape
from reshard.tensors import LogicalTensor, cut

AUTOTP = Policy(name="safetensors", head="features", uneven=True)
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 100,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 261,
}


GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 96, "n_head": 24, "n_layer": 2, "vocab_size": 261}


BLOCK = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (261, 96),
    f"{BLOCK}self_attn.q_proj.weight": (96, 96),
    f"{BLOCK}self_attn.q_proj.bias": (96,),
    f"{BLOCK}self_attn.k_proj.weight": (8, 96),
    f"{BLOCK}self_attn.o_proj.weight": (96, 96),
    f"{BLOCK}self_attn.o_proj.bias": (96,),
    f"{BLOCK}mlp.up_proj.weight": (100, 96),
    f"{BLOCK}mlp.down_proj.weight": (96, 100),
    f"{BLOCK}mlp.down_proj.bias": (96,),
    f"{BLOCK}input_layernorm.weight": (96,),
    f"{BLOCK}self_attn.rotary_emb.inv_freq": (2,),
    "lm_head.weight": (261, 96),
    "lm_head.bias": (261,),
}


def model(config: dict[str, Any]) -> Model:
    return parse_model(json.dumps(config).encode(), "config.json")


def rules(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Rules:
    tensors = {name: LogicalTensor(dtype="float32", shape=shape) for name, shape in shapes.items()}
    return Rules(model(config), tensors)


@pytest.mark.parametrize(
    "name, role, dim",
    [
        ("model.embed_tokens.weight", "embedding", None),
        (f"{BLOCK}self_attn.q_proj.weight", "query", 0),
        (f"{BLOCK}self_attn.q_proj.bias", "query", 0),
        (f"{BLOCK}self_attn.k_proj.weight", "key", 0),
        (f"{BLOCK}self_attn.o_proj.weight", "attention_output", 1),
        # Added after the sum over ranks: whole on every rank.
        (f"{BLOCK}self_attn.o_proj.bias", "attention_output", None),
        (f"{BLOCK}mlp.up_proj.weight", "mlp_up", 0),
        (f"{BLOCK}mlp.down_proj.weight", "mlp_output", 1),
        (f"{BLOCK}mlp.down_proj.bias", "mlp_output", None),
        (f"{BLOCK}input_layernorm.weight", "input_norm", None),
        (f"{BLOCK}self_attn.rotary_emb.inv_freq", "replicated", None),
        ("lm_head.weight", "head", 1),
        ("lm_head.bias", "head", None),
    ],
)
def test_roles_and_cuts_of_a_llama(name: str, role: str, dim: int | None) -> None:
    rule = rules(LLAMA, SHAPES).rule(name)
    found = AUTOTP.cut(rule)
    assert rule.role == role
    assert (None if found is None else found.dim) == dim


def test_formats_differ_in_the_vocabulary() -> None:
    of = rules(LLAMA, SHAPES)
    embedding, head = of.rule("model.embed_tokens.weight"), of.rule("lm_head.weight")
    wanted = {"replicated": None, "vocabulary": 0, "features": 1}
    for embedding_way, embedding_dim in wanted.items():
        for head_way, head_dim in wanted.items():
            policy = Policy(name="x", embedding=embedding_way, head=head_way)
            dims = [None if (c := policy.cut(r)) is None else c.dim for r in (embedding, head)]
            assert dims == [embedding_dim, head_dim]
    # The head's bias is as long as the vocabulary, and is cut with it alone.
    bias = of.rule("lm_head.bias")
    assert (cut := Policy(name="x", head="vocabulary").cut(bias)) is not None
    assert cut.dim == 0
    assert Policy(name="x", head="features").cut(bias) is None


def test_uneven_shares_are_a_formats_choice() -> None:
    rule = rules(LLAMA, SHAPES).rule(f"{BLOCK}mlp.up_proj.weight")
    uneven, even = AUTOTP.cut(rule), Policy(name="even").cut(rule)
    assert uneven is not None
    assert even is not None
    assert [uneven.intervals("up", 8, r)[0] for r in (0, 3, 7)] == [(0, 13), (39, 52), (88, 100)]
    with pytest.raises(CannotSplitError, match="up: 100 features cannot be shared out over tp_size=8"):
        even.intervals("up", 8, 0)


def test_a_conv1d_is_cut_the_other_way_round() -> None:
    of = rules(
        GPT2,
        {
            "transformer.h.1.attn.c_attn.weight": (96, 288),
            "transformer.h.1.attn.c_attn.bias": (288,),
            "transformer.h.1.attn.c_proj.weight": (96, 96),
            "transformer.h.1.mlp.c_proj.weight": (384, 96),
        },
    )
    cuts = {name: AUTOTP.cut(of.rule(name)) for name in of.tensors}
    assert [c and c.dim for c in cuts.values()] == [1, 0, 0, 0]
    fused = cuts["transformer.h.1.attn.c_attn.weight"]
    assert fused is not None
    assert fused.intervals("c_attn", 24, 5) == ((20, 24), (116, 120), (212, 216))


@pytest.mark.parametrize(
    "name",
    ["h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.weight", "transformer.h.17.attn.c_attn.weight"],
)
def test_checkpoints_of_the_bare_model_lack_the_prefix(name: str) -> None:
    assert rules(GPT2, {name: (96, 288)}).rule(name).role == "query_key_value"


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.c_gate.weight",
        "transformer.h.attn.c_attn.weight",
        "h.0.1.attn.c_attn.weight",
        "other.h.0.attn.c_attn.weight",
        "transformer.lm_head.weight",
        "weight",
    ],
)
def test_what_no_table_mentions_is_an_error_that_names_the_table(name: str) -> None:
    with pytest.raises(UnknownArchitectureError) as caught:
        rules(GPT2, {name: (96, 288)}).rule(name)
    assert repr(name) in str(caught.value)
    assert "reshard/architectures/gpt2.toml" in str(caught.value)


def test_a_family_without_a_table_is_an_error_that_says_which_file_to_add() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"add reshard/architectures/nonesuch\.toml"):
        rules({"model_type": "nonesuch"}, {})


@pytest.mark.parametrize(
    "name, shape, message",
    [
        (f"{BLOCK}self_attn.q_proj.weight", (97, 96), "has 97 rows or columns where the configuration gives"),
        (f"{BLOCK}self_attn.k_proj.weight", (96, 96), "gives 2 key × 4 = 8"),
        (f"{BLOCK}self_attn.o_proj.weight", (96, 90), "gives 24 query × 4 = 96"),
    ],
)
def test_shapes_that_contradict_the_configuration(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DamagedFileError) as caught:
        rules(LLAMA, {name: shape}).rule(name)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_one_module_for_every_head_cannot_be_shared_out() -> None:
    name = "model.layers.0.self_attn.q_layernorm.norms.3.weight"
    rule = rules(LLAMA | {"model_type": "stablelm"}, {name: (4,)}).rule(name)
    with pytest.raises(CannotSplitError, match="cannot share out one module for every head"):
        AUTOTP.cut(rule)


@pytest.mark.parametrize("name, shape", SHAPES.items())
@pytest.mark.parametrize("tp_size", [1, 2, 4, 8, 24])
def test_the_shares_of_a_tensor_give_its_shape(name: str, shape: tuple[int, ...], tp_size: int) -> None:
    of = rules(LLAMA, SHAPES)
    way = AUTOTP.cut(of.rule(name)) if tp_size > 1 else None
    shares = []
    for rank in range(tp_size):
        if way is None:
            shares.append(shape)
            continue
        shares.append(cut(name, of.tensors[name], way.dim, way.intervals(name, tp_size, rank)).shape)
    assert logical_shape(of.model, AUTOTP, name, shares) == shape


def test_shares_of_different_dimensions_are_refused() -> None:
    with pytest.raises(InconsistentShardsError, match="different numbers of dimensions"):
        logical_shape(model(LLAMA), AUTOTP, "lm_head.weight", [(3, 4), (3,)])


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 64))
def test_heads_are_whole_on_every_rank_or_the_degree_is_refused(kv: int, groups: int, tp_size: int) -> None:
    heads = kv * groups
    config = LLAMA | {"num_attention_heads": heads, "num_key_value_heads": kv, "hidden_size": heads * 2}
    works = heads % tp_size == 0 and (kv % tp_size == 0 or tp_size % kv == 0)
    of = Rules(
        model(config),
        {
            f"{BLOCK}self_attn.q_proj.weight": LogicalTensor(dtype="float32", shape=(heads * 2, 4)),
            f"{BLOCK}self_attn.k_proj.weight": LogicalTensor(dtype="float32", shape=(kv * 2, 4)),
        },
    )
    try:
        check_heads(of.model, tp_size)
    except CannotSplitError as error:
        assert not works
        listed = [int(word) for word in str(error).rpartition(": ")[2].split(", ")]
        assert all(heads % n == 0 for n in listed)
        return
    assert works
    # A rank's queries use its own KV heads: rank r's first query belongs to its first KV head.
    for rank in range(tp_size):
        query, key = (
            way.intervals(name, tp_size, rank)[0]
            for name in of.tensors
            if (way := AUTOTP.cut(of.rule(name))) is not None
        )
        assert (query[0] // 2) // groups == key[0] // 2
        assert ((query[1] - 2) // 2) // groups == (key[1] - 2) // 2
