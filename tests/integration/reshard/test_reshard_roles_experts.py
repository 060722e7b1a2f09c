"""Roles of stacked experts, as the running model has them, for checkpoints that store every expert apart."""

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from reshard.errors import CannotSplitError, InconsistentShardsError, UnsupportedTargetError
from reshard.formats.running import as_stored
from reshard.roles import Roles, WeightRoles
from reshard.verification import verify

from .reshard_roles_cases import build, columns, oracle, per_head, write
from .variants import assert_equal, cut, load

_MOE: Final = {
    "hidden_size": 48,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "num_experts_per_tok": 2,
    "vocab_size": 64,
}
_LAYER: Final = "model.layers.*."


def stacked(model_type: str, module: str, intermediate: int = 12, biases: tuple[str, ...] = ()) -> Roles:
    """As the running model has it: `[expert, gate | up, hidden]` and `[expert, hidden, intermediate]`."""
    heads = per_head(6, 8, 0)
    weights = {_LAYER + f"self_attn.{n}_proj.{p}": heads for n in "qkv" for p in ("weight", *biases)}
    weights[_LAYER + "self_attn.o_proj.weight"] = columns(heads)
    gate_up = per_head(intermediate, 1, 0, intermediate)
    weights[_LAYER + module + "gate_up_proj"] = WeightRoles(dim=1, groups=gate_up.groups)
    weights[_LAYER + module + "down_proj"] = WeightRoles(dim=2, groups=per_head(intermediate, 1, 0).groups)
    return Roles(model_type=model_type, weights=weights)


def apart(roles: Roles, module: str, gate: str, up: str, down: str) -> Roles:
    """As the checkpoint has it: every expert's three matrices."""
    plain = per_head(12, 1, 0)
    rest = {name: weight for name, weight in roles.weights.items() if "self_attn" in name}
    expert = _LAYER + module + "*."
    return Roles(
        model_type=roles.model_type,
        weights=rest | {expert + gate: plain, expert + up: plain, expert + down: columns(plain)},
    )


def renamed(roles: Roles, **names: str) -> Roles:
    """As a checkpoint has it that keeps experts stacked, and calls them otherwise."""

    def name_of(name: str) -> str:
        module, _, last = name.rpartition(".experts.")
        return f"{module}.{names[last]}.weight" if last in names else name

    return msgspec.structs.replace(roles, weights={name_of(n): w for n, w in roles.weights.items()})


#: Settings, roles of what runs, roles of what is stored. Only Mixtral has a table.
CASES: Final[dict[str, tuple[dict[str, Any], Roles, Roles]]] = {
    "granitemoe": (
        _MOE | {"num_local_experts": 4},
        running := stacked("granitemoe", "block_sparse_moe.experts."),
        renamed(running, gate_up_proj="input_linear", down_proj="output_linear"),
    ),
    "mixtral": (
        _MOE | {"num_local_experts": 4},
        running := stacked("mixtral", "mlp.experts."),
        apart(running, "block_sparse_moe.experts.", "w1.weight", "w3.weight", "w2.weight"),
    ),
    "olmoe": (
        _MOE | {"num_experts": 4},
        running := stacked("olmoe", "mlp.experts."),
        apart(running, "mlp.experts.", "gate_proj.weight", "up_proj.weight", "down_proj.weight"),
    ),
    "phimoe": (
        _MOE | {"num_local_experts": 4, "attention_bias": False, "lm_head_bias": False},
        running := stacked("phimoe", "mlp.experts."),
        apart(running, "block_sparse_moe.experts.", "w1.weight", "w3.weight", "w2.weight"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_experts_are_cut_as_if_their_own_roles_were_given(name: str, work: Path) -> None:
    settings, runs, stored = CASES[name]
    original = build(name, work / "hf", **settings)
    for tp_size in (2, 3):
        for kind, roles in (("runs", runs), ("stored", stored)):
            file = write(roles, work / "roles.json")
            cut(work / "hf", work / f"{kind}{tp_size}", tp_size, roles=file)
            for rank in range(tp_size):
                found = load(work / f"{kind}{tp_size}", f"model-rank-{rank:02d}-*")
                assert_equal(found, oracle(stored, original, tp_size, rank), f"{kind} {tp_size} {rank}")
        assert verify(str(work / f"runs{tp_size}"), str(work / "hf")).tensors == len(original)
    cut(work / "runs2", work / "again", 3)
    assert_equal(load(work / "again", "*-rank-02-*"), load(work / "runs3", "*-rank-02-*"))
    cut(work / "again", work / "merged", 1, format="huggingface")
    assert_equal(load(work / "merged"), original)


def test_what_the_checkpoint_stores_as_it_runs_stays(work: Path) -> None:
    settings, runs, stored = CASES["olmoe"]
    original = build("olmoe", work / "hf", **settings)
    shapes = {name: tuple(tensor.shape) for name, tensor in original.items()}
    config = json.loads((work / "hf" / "config.json").read_text())
    assert as_stored(stored, config, shapes) is stored
    assert as_stored(runs, config | {"model_type": "nobody-has-this"}, shapes) is runs
    made = as_stored(runs, config, shapes)
    experts = [f"model.layers.{i}.mlp.experts.{e}.up_proj.weight" for i in (0, 1) for e in range(4)]
    assert {made.weights[name] for name in experts} == {per_head(12, 1, 0)}
    assert as_stored(made, config, shapes) is made


@pytest.mark.parametrize(
    "change, error, says",
    [
        ({"gate_up_proj": (1, 13)}, CannotSplitError, r"index 12 of .*gate_up_proj, dimension 1, twice"),
        ({"gate_up_proj": (3, 12)}, CannotSplitError, r"cut dimension 3 of .*gate_up_proj, which"),
        ({"down_proj": (0, 4)}, UnsupportedTargetError, r"down_proj, which transformers stores as"),
        ({"middle_proj": (1, 12)}, InconsistentShardsError, r"middle_proj, which the checkpoint does"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(
    change: dict[str, tuple[int, int]], error: type[Exception], says: str, work: Path
) -> None:
    settings, runs, _ = CASES["olmoe"]
    build("olmoe", work / "hf", **settings)
    weights = dict(runs.weights)
    for name, (dim, extent) in change.items():
        key = f"{_LAYER}mlp.experts.{name}"
        pieces = (0, 12) if name.startswith("gate") else (0,)
        weights[key] = WeightRoles(dim=dim, groups=per_head(extent, 1, *pieces).groups)
    file = write(Roles(model_type="olmoe", weights=weights), work / "roles.json")
    with pytest.raises(error, match=says):
        cut(work / "hf", work / "out", 2, roles=file)
    assert not (work / "out").exists()


def test_vectors_under_other_names_are_told() -> None:
    """A family that is stored under another module's name, its vectors of heads included."""
    runs, stored = "model.layers.0.self_attn.forget_gate.A_log", "model.layers.0.attention.A_log"
    settings = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
    config = {"model_type": "bailing_hybrid", "num_experts": 4, "pad_token_id": 0} | settings
    roles = Roles(model_type="bailing_hybrid", weights={runs: per_head(2, 2, 0)}, bias_once=(runs,))
    made = as_stored(roles, config, {stored: (4,)})
    assert made.weights == {stored: per_head(2, 2, 0)}
    assert made.bias_once == (stored,)
