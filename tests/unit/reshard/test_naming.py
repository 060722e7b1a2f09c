"""From roles back to names: whatever a table names is found again under that name and role."""

import json
from typing import Any

import pytest

from reshard.architectures import families
from reshard.architectures.schema import Role
from reshard.errors import DamagedFileError, InconsistentShardsError, UnsupportedSourceError
from reshard.formats.naming import Expected, module_of, one_dtype, placed
from reshard.lookup import find
from reshard.model import Model, parse_model
from reshard.tensors import LogicalTensor, StoredTensor, copy_of

#: Every table finds its extents under one of these.
NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 8),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 4),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "n_embed"), 64),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    "vocab_size": 99,
}
ROLES: tuple[Role, ...] = (
    "query", "key", "value", "attention_output", "mlp_gate", "mlp_up", "mlp_output", "input_norm",
    "post_attention_norm",
)  # fmt: skip


def model(model_type: str, **settings: Any) -> Model:
    return parse_model(json.dumps({"model_type": model_type} | NUMBERS | settings).encode(), "config.json")


@pytest.mark.parametrize("family", sorted(set(families()) - {"t5"}))
def test_names_made_of_roles_have_those_roles(family: str) -> None:
    of = model(families()[family].model_types[0])
    table, _ = of.known()
    found = 0
    for role in ROLES:
        name = module_of(of, role, 1)
        if name is None:
            continue
        match = find(table, of, f"{name.module}.weight")
        assert match is not None
        entry, module, param, stars = match
        assert (entry, module, param, stars) == (name.entry, name.module, "weight", ("1",))
        found += 1
    # Mixtral's and Qwen's MLPs may be experts, which have two numbers or stand in one tensor.
    assert found >= (5 if "moe" in family or family == "mixtral" else 7)
    head = module_of(of, "head", None)
    assert head is None or find(table, of, f"{head.module}.weight") == (head.entry, head.module, "weight", ())


@pytest.mark.parametrize(
    "model_type, role, param, expected",
    [
        ("llama", "query", "weight", ("model.layers.1.self_attn.q_proj.weight", (64, 64))),
        ("llama", "key", "weight", ("model.layers.1.self_attn.k_proj.weight", (32, 64))),
        ("llama", "mlp_output", "weight", ("model.layers.1.mlp.down_proj.weight", (64, 100))),
        ("phi3", "value", "weight", ("model.layers.1.self_attn.qkv_proj.weight", (128, 64))),
        ("phi3", "mlp_up", "weight", ("model.layers.1.mlp.gate_up_proj.weight", (200, 64))),
        ("bloom", "query", "bias", ("transformer.h.1.self_attention.query_key_value.bias", (192,))),
        ("gpt2", "query", "weight", ("transformer.h.1.attn.c_attn.weight", (64, 192))),
        ("gpt2", "mlp_up", "weight", ("transformer.h.1.mlp.c_fc.weight", (64, 100))),
        ("gpt2", "mlp_output", "bias", ("transformer.h.1.mlp.c_proj.bias", (64,))),
        ("opt", "post_attention_norm", "weight", ("model.decoder.layers.1.final_layer_norm.weight", (64,))),
    ],
)
def test_shapes_come_from_the_geometry(
    model_type: str, role: Role, param: str, expected: tuple[str, tuple[int, ...]]
) -> None:
    made = Expected(model(model_type), "float16", 100)
    name = made.add(role, param, 1)
    assert (name, made.tensors[name].shape) == expected
    assert made.tensors[name].dtype == "float16"


def test_a_role_that_the_family_lacks_is_an_error() -> None:
    with pytest.raises(UnsupportedSourceError, match="hold a mlp_gate, which 'opt' does not have"):
        Expected(model("opt"), "float16", 100).add("mlp_gate", "weight", 0)


WANTED = copy_of("w", LogicalTensor(dtype="float16", shape=(4, 6)))


def held(shape: tuple[int, ...], **more: Any) -> dict[str, StoredTensor]:
    return {"w": StoredTensor(name="w", dtype="float32", shape=shape, chunks=(), offset_bytes=80, **more)}


def test_files_are_described_by_what_would_have_been_written() -> None:
    (found,) = placed([WANTED], held((4, 6)), "file")
    assert (found.chunks, found.offset_bytes, found.dtype) == (WANTED.chunks, 80, "float32")
    assert found.element_strides() == (6, 1)
    transposed = StoredTensor(name="w", dtype="float16", shape=(4, 6), chunks=WANTED.chunks, transposed=True)
    (found,) = placed([transposed], held((6, 4)), "file")
    assert found.element_strides() == (1, 4)
    # An archive may hold a view: its strides are its own.
    (found,) = placed([transposed], held((6, 4), strides=(1, 6)), "file")
    assert found.element_strides() == (6, 1)


def test_files_of_another_degree_or_model_are_told_apart() -> None:
    with pytest.raises(InconsistentShardsError, match=r"file has w as \[2, 6\] where \[4, 6\] is expected"):
        placed([WANTED], held((2, 6)), "file")
    with pytest.raises(InconsistentShardsError, match="file has no w"):
        placed([WANTED], {}, "file")
    assert placed([WANTED], {}, "file", optional=["w"]) == ()


def test_one_dtype_or_an_error() -> None:
    kinds = {d: StoredTensor(name=d, dtype=d, shape=(1,), chunks=()) for d in ("float16", "float32", "int64")}
    assert one_dtype([kinds["float16"], kinds["int64"]], "file") == "float16"
    with pytest.raises(DamagedFileError, match="mixes float16 and float32"):
        one_dtype(kinds.values(), "file")
    with pytest.raises(DamagedFileError, match="no floating dtypes"):
        one_dtype([kinds["int64"]], "file")
