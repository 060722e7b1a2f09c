"""The batch sizes that a search considers."""

from itertools import pairwise

from planner.schema.workload import BATCH_LADDER


def test_the_ladder_steps_by_a_sixteenth_at_most() -> None:
    assert BATCH_LADDER[0] == 1
    for smaller, larger in pairwise(BATCH_LADDER):
        assert smaller < larger <= max(smaller + 1, smaller * 1.0625)
