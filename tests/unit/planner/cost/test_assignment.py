"""Choices of places, read back."""

import pytest

from planner.cost.assignment import Assignment, kind_of, leaves

from .by_hand import problem, with_second_block_on


def test_one_device_for_everything() -> None:
    everything = Assignment.uniform(problem(), "gpu:0")
    assert everything.runs_on == ("gpu:0",) * 4
    # Embedding and head are one leaf each, a block is three.
    assert everything.stored_on == (("gpu:0",), ("gpu:0",) * 3, ("gpu:0",) * 3, ("gpu:0",))
    assert everything.places == {"gpu:0"}


def test_one_place_that_everything_is_streamed_from() -> None:
    streamed = Assignment.uniform(problem(), "gpu:0", "disk")
    assert streamed.runs_on == ("gpu:0",) * 4
    assert {place for stored_on in streamed.stored_on for place in stored_on} == {"disk"}
    assert streamed.places == {"gpu:0", "disk"}


@pytest.mark.parametrize(
    "device, kind", [("gpu:0", "gpu"), ("gpu:13", "gpu"), ("cpu", "cpu"), ("disk", "disk")]
)
def test_the_kind_of_a_device(device: str, kind: str) -> None:
    assert kind_of(device) == kind


def test_every_leaf_with_its_two_places() -> None:
    priced = problem()
    listed = list(leaves(priced, with_second_block_on(priced, "cpu")))
    names = [(runs_on, *leaf.leaf.entries, stored_on) for runs_on, leaf, stored_on in listed]
    assert names == [
        ("gpu:0", "embed", "gpu:0"),
        ("gpu:0", "layers.0.attention", "gpu:0"),
        ("gpu:0", "layers.0.up", "gpu:0"),
        ("gpu:0", "layers.0.down", "gpu:0"),
        ("gpu:0", "layers.1.attention", "cpu"),
        ("gpu:0", "layers.1.up", "cpu"),
        ("gpu:0", "layers.1.down", "cpu"),
        ("gpu:0", "head", "gpu:0"),
    ]


def test_an_assignment_of_another_length_is_an_error() -> None:
    priced = problem()
    short = Assignment(runs_on=("gpu:0",) * 3, stored_on=(("gpu:0",),) * 3)
    with pytest.raises(ValueError, match="zip"):
        list(leaves(priced, short))
