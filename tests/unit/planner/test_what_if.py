"""What a little more of something would bring."""

from fixtures.graphs import layered_graph
from planner.hardware.load import load
from planner.models.traced import Model
from planner.planning import make_plan
from planner.request import Request
from planner.what_if import int8_weights, what_if

MODEL = Model(
    name="layered",
    auto_class="causal-lm",
    dtype="float16",
    graph=layered_graph(40, hidden=5120, vocabulary=50272),
)


def test_a_streamed_plan_gains_from_each_and_never_loses() -> None:
    plan = make_plan(MODEL, load("t4"), Request(batch_size=8, new_tokens=4))
    changes = {change.what: change for change in what_if(MODEL, plan)}
    assert set(changes) == {
        "one GiB more on each GPU",
        "twice the link",
        "twice the host memory",
        "weights in int8, decoded for nothing",
    }
    assert all(change.possible and change.speedup >= 0.999 for change in changes.values())
    # Most of the time goes to copying weights: half the time with twice the link, and not less than half.
    assert 1.3 < changes["twice the link"].speedup <= 2.0
    assert changes["weights in int8, decoded for nothing"].speedup > 1.5


def test_int8_halves_the_blocks_and_nothing_else() -> None:
    def num_bytes(model: Model, *, blocks: bool) -> int:
        return sum(
            tensor.num_elements * (1 if tensor.dtype == "int8" else 2)
            for node in model.graph.nodes
            for tensor in node.tensors
            if (node.block is not None) == blocks and len(tensor.shape) > 1
        )

    narrow = int8_weights(MODEL)
    assert num_bytes(narrow, blocks=True) * 2 == num_bytes(MODEL, blocks=True)
    assert num_bytes(narrow, blocks=False) == num_bytes(MODEL, blocks=False)


def test_a_change_is_judged_among_the_runtimes_that_were_asked_for() -> None:
    """Otherwise a runtime that was ruled out would be the gain of a GiB."""
    plan = make_plan(MODEL, load("t4"), Request(runtimes=("zero-inference",), new_tokens=4))
    assert all("ZeRO-Inference" in change.label for change in what_if(MODEL, plan))
