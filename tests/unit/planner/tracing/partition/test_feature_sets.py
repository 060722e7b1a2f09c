"""Union-find on arrays against one on single ids."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from planner.tracing.partition.feature_sets import FeatureSets

PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60)


def one_by_one(pairs: list[tuple[int, int]], size: int) -> list[int]:
    """The smallest member of everybody's set, id 0 in no set but its own."""
    label = list(range(size))
    for a, b in pairs:
        if a and b:
            low, high = sorted((label[a], label[b]))
            label = [low if one == high else one for one in label]
    return label


@given(PAIRS, st.integers(1, 4))
def test_labels_are_the_smallest_members(pairs: list[tuple[int, int]], num_parts: int) -> None:
    sets = FeatureSets()
    assert sets.fresh(30) == 1
    for part in np.array_split(np.asarray(pairs, dtype=np.int64).reshape(-1, 2), num_parts):
        sets.unite(part[:, 0], part[:, 1])
        sets.labels()
    assert sets.labels().tolist() == one_by_one(pairs, 31)


def test_what_meets_has_the_ids_of_whoever_has_any() -> None:
    sets = FeatureSets()
    first = sets.fresh(4)
    met = sets.meet(np.array([[first], [0]]), np.array([0, first + 1]))
    assert met.tolist() == [[first, first], [0, first + 1]]
    assert sets.labels().tolist() == [0, first, first, first + 2, first + 3]


def test_a_sum_unites_along_its_dimensions_alone() -> None:
    sets = FeatureSets()
    ids = sets.fresh(6) + np.arange(6).reshape(2, 3)
    assert sets.collapse(ids, (-1,)).shape == (2, 1)
    assert sets.labels()[ids].tolist() == [[1, 1, 1], [4, 4, 4]]
    sets.collapse(ids, (0, 1))
    assert len(np.unique(sets.labels()[ids])) == 1


def test_one_head_of_keys_for_many_of_queries_is_noted_as_shared() -> None:
    sets = FeatureSets()
    queries, key = sets.fresh(4) + np.arange(4), sets.fresh(1)
    sets.meet(queries, np.full(4, key))
    assert [members.tolist() for members in sets.shared.values()] == [[key]]


def test_as_many_heads_of_keys_as_of_queries_are_not() -> None:
    sets = FeatureSets()
    sets.meet(sets.fresh(4) + np.arange(4), sets.fresh(4) + np.arange(4))
    assert not sets.shared
