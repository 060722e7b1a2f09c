"""Every shipped model, cut every way: shares add up, and more ranks never hold more."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.graph.schema import ModuleGraph
from planner.models.resolve import resolve
from planner.models.shipped import shipped_names
from planner.tensor_parallel.rules import DEEPSPEED_TP, KERNEL_INJECTION, TRANSFORMERS_TP, CutRules
from planner.tensor_parallel.shard import degrees, sharded
from planner.tracing.store import graph_for

RULES = st.sampled_from((DEEPSPEED_TP, TRANSFORMERS_TP, KERNEL_INJECTION))


@cache
def _graph(name: str) -> ModuleGraph:
    return graph_for(resolve(name))


@cache
def _rank(name: str, degree: int, rules_name: str) -> ModuleGraph:
    rules = {r.name: r for r in (DEEPSPEED_TP, TRANSFORMERS_TP, KERNEL_INJECTION)}[rules_name]
    return sharded(_graph(name), degree, rules)


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_model_can_be_cut(name: str) -> None:
    assert degrees(_graph(name))


@given(name=st.sampled_from(shipped_names()), rules=RULES, data=st.data())
@settings(deadline=None, max_examples=60)
def test_ranks_add_up_to_the_model(name: str, rules: CutRules, data: st.DataObject) -> None:
    whole = _graph(name)
    degree = data.draw(st.sampled_from(degrees(whole)))
    rank = _rank(name, degree, rules.name)
    for before, after in zip(whole.nodes, rank.nodes, strict=True):
        assert (before.name, before.order, before.block) == (after.name, after.order, after.block)
        sharded_part = before.tensor_parallel.sharded if before.tensor_parallel else 1.0
        for old, new in zip(before.tensors, after.tensors, strict=True):
            cut = [(a, b) for a, b in zip(old.shape, new.shape, strict=True) if a != b]
            assert len(cut) <= 1
            for a, b in cut:
                # Evenly where it is cut whole; a vocabulary that does not divide is rounded up.
                assert b == -(-round(a * (1 - sharded_part + sharded_part / degree) * degree) // degree)
                assert b * degree >= a


def _peak(name: str, degree: int, rules: CutRules, size: str) -> float:
    """Live bytes at the worst moment of prefill."""
    nodes = _rank(name, degree, rules.name).nodes
    forms = [form for n in nodes if size in n.costs for form in n.costs[size].prefill.peak_bytes]
    return max(form(batch=4, prompt=64) for form in forms)


@given(name=st.sampled_from(shipped_names()), rules=RULES, data=st.data())
@settings(deadline=None, max_examples=60)
def test_more_ranks_never_hold_or_compute_more(name: str, rules: CutRules, data: st.DataObject) -> None:
    possible = (1, *degrees(_graph(name)))
    fewer = data.draw(st.sampled_from(possible))
    more = data.draw(st.sampled_from([d for d in possible if d >= fewer]))
    lengths = {"batch": 4, "prompt": 64, "context": 80}
    for size in ("2", "4"):
        assert _peak(name, more, rules, size) <= _peak(name, fewer, rules, size) * (1 + 1e-12)
    for a, b in zip(_rank(name, fewer, rules.name).nodes, _rank(name, more, rules.name).nodes, strict=True):
        assert sum(t.num_elements for t in b.tensors) <= sum(t.num_elements for t in a.tensors)
        assert (b.kv.per_token if b.kv else 0) <= (a.kv.per_token if a.kv else 0)
        for size in a.costs:
            for phase in ("prefill", "decode"):
                old, new = getattr(a.costs[size], phase), getattr(b.costs[size], phase)
                assert new.flops(**lengths) <= old.flops(**lengths) * (1 + 1e-12)
                assert new.moved_bytes(**lengths) <= old.moved_bytes(**lengths) * (1 + 1e-12)
