"""Derived roles, a roles file, `reshard --roles`, two processes: the halves compute what the whole does."""

from typing import Any, Final, NamedTuple

import msgspec
import pytest
import torch

from reshard.architectures import for_model_type
from reshard.role_cuts import Names
from reshard.roles import Roles, WeightRoles

from .proof import TP_SIZE, Case, Compared, Plain, compare, prepare, run_halves

#: Float32 sums in another order, relative to the largest logit.
TOLERANCE: Final = 2e-5

#: Families for which this package has no table.
_NO_TABLE: Final = (
    "biogpt", "cohere", "glm", "gpt_neox_japanese", "granite", "nemotron", "olmo", "olmo2", "olmoe",
    "starcoder2", "xglm",
)  # fmt: skip
_TABLED: Final = (
    "bloom", "falcon-grouped", "falcon-multi-head", "falcon-multi-query", "gemma2", "gpt2", "gpt_bigcode",
    "gpt_neo", "gpt_neox", "gptj", "llama", "mixtral", "mpt", "opt", "phi3", "qwen2", "stablelm", "t5",
)  # fmt: skip
#: CodeGen's forward takes its heads from four blocks, and keeps them four.
_BLOCKS: Final = 4


def _one_head_of_each_block(roles: Roles) -> Roles:
    """Groups of four heads, one of each block: a rank's share then has four blocks as well."""

    def merged(weight: WeightRoles) -> WeightRoles:
        step = len(weight.groups) // _BLOCKS
        groups = tuple(tuple(i for group in weight.groups[g::step] for i in group) for g in range(step))
        return msgspec.structs.replace(weight, groups=groups)

    changed = {n: merged(w) if ".attn." in n else w for n, w in roles.weights.items()}
    return msgspec.structs.replace(roles, weights=changed)


def _shifted(roles: Roles) -> Roles:
    """Every query head has one row of its neighbour's."""

    def shift(weight: WeightRoles) -> WeightRoles:
        owner = {i: g for g, intervals in enumerate(weight.groups) for b, e in intervals for i in range(b, e)}
        moved = {(i + 1) % len(owner): group for i, group in owner.items()}
        groups = tuple(
            tuple((i, i + 1) for i in sorted(moved) if moved[i] == group)
            for group in range(len(weight.groups))
        )
        return msgspec.structs.replace(weight, groups=groups)

    changed = {n: shift(w) if n.endswith("q_proj.weight") else w for n, w in roles.weights.items()}
    return msgspec.structs.replace(roles, weights=changed)


CASES: Final = {name: Case(name) for name in (*_NO_TABLE, *_TABLED)} | {
    "codegen": Case("codegen", {"n_head": 8, "rotary_dim": 4}, _one_head_of_each_block),
}
#: Wrong on purpose.
WRONG: Final = {"llama-shifted": Case("llama", change=_shifted)}


class Proof(NamedTuple):
    """Models and what became of their halves."""

    plain: dict[str, Plain]
    answers: dict[str, list[dict[str, Any]]]

    def compared(self, name: str) -> Compared:
        return compare(self.plain[name], self.answers[name])


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    work = tmp_path_factory.mktemp("halves")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is computed before its threads have woken
    try:
        plain = {name: prepare(name, work, case) for name, case in (CASES | WRONG).items()}
    finally:
        torch.set_num_threads(threads)
    return Proof(plain, run_halves([one.job for one in plain.values()], work))


def test_families_without_a_table_have_none() -> None:
    assert not [name for name in _NO_TABLE if for_model_type(name)]


@pytest.mark.parametrize("name", CASES)
def test_two_halves_compute_what_the_whole_does(proof: Proof, name: str) -> None:
    plain, found = proof.plain[name], proof.compared(name)
    assert found.error <= TOLERANCE
    # A nearer tie could fall either way, and the comparison would say nothing.
    assert plain.margin > 2 * TOLERANCE * float(plain.logits.abs().max())
    assert found.tokens_equal


@pytest.mark.parametrize("name", CASES)
def test_each_rank_holds_its_share_and_no_more(proof: Proof, name: str) -> None:
    plain, found = proof.plain[name], proof.compared(name)
    # Whatever the file lists is smaller on every rank; nothing else is.
    assert set(found.shares) == plain.roles.cut
    weights = Names(found.shares).matches(plain.roles.file.weights)
    for parameter, (whole, *shares) in found.shares.items():
        weight = weights[parameter]
        held = {i for intervals in weight.groups for b, e in intervals for i in range(b, e)}
        # What is in no group is on both ranks; every model here has groups of one size.
        mine = whole[weight.dim] - len(held) + len(held) // TP_SIZE
        wanted = (*whole[: weight.dim], mine, *whole[weight.dim + 1 :])
        assert shares == [wanted] * TP_SIZE, parameter


def test_heads_that_are_no_parameters_were_told(proof: Proof) -> None:
    told = {name for name, plain in proof.plain.items() if plain.roles.constants}
    assert {"bloom", "falcon-multi-head", "mpt"} <= told


def test_ownership_shifted_by_one_row_is_seen(proof: Proof) -> None:
    assert proof.compared("llama-shifted").error > 1000 * TOLERANCE
    assert proof.compared("llama").error <= TOLERANCE
