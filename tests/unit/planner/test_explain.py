"""Plans in words."""

from fixtures.graphs import layered_graph
from planner.explain import describe_modules, explain
from planner.hardware.load import load
from planner.models.traced import Model
from planner.planning import make_plan
from planner.request import Request


def test_whole_layers_are_folded_and_parts_are_named() -> None:
    everything = [f"h.{i}.{part}" for i in range(4) for part in ("attn", "mlp")] + ["head"]
    some = ["h.0.attn", "h.0.mlp", "h.1.attn", "h.1.mlp", "h.3.attn", "head"]
    assert describe_modules(some, everything) == "head; h.{0-1,3} (attn); h.{0-1} (mlp)"
    assert describe_modules(everything, everything) == "head; h.{0-3}"


def test_it_says_where_why_what_bounds_and_what_lost() -> None:
    model = Model(
        name="layered",
        auto_class="causal-lm",
        dtype="float16",
        graph=layered_graph(40, hidden=5120, vocabulary=50272),
    )
    plan = make_plan(model, load("t4"), Request(batch_size=8))
    said = explain(plan)
    assert sum(place.num_bytes for place in said.places) == 2 * model.graph.num_parameters
    streamed = [p for p in said.places if p.lives == "cpu" and p.executes == "gpu:0"]
    assert streamed
    assert "streamed from pinned copies" in streamed[0].why
    decode = next(b for b in said.bounds if b.phase == "decode")
    assert decode.part == "weight_movement"
    assert 0.5 < decode.share <= 1
    assert said.tightest is not None
    assert 0 <= said.tightest.free_bytes < said.tightest.capacity_bytes
    pageable = next(a for a in said.rejected if a.label == "accelerate, pageable host copies")
    assert "slower" in pageable.reason
