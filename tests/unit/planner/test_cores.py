"""A thread on its way over the cores that it may use."""

import os
from pathlib import Path

import pytest

from planner.cores import _large, every_core

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="threads cannot be moved here"
)


@needs_affinity
def test_every_core_gets_its_turn_and_the_thread_is_free_afterwards() -> None:
    allowed = os.sched_getaffinity(0)
    seen = []
    with every_core() as move:
        for _ in range(2 * len(allowed)):
            move()
            seen.append(frozenset(os.sched_getaffinity(0)))
    assert os.sched_getaffinity(0) == allowed
    if len(allowed) > 1:
        assert set(seen) == {frozenset({core}) for core in allowed}
        assert seen[: len(allowed)] == seen[len(allowed) :]


@needs_affinity
def test_ranks_keep_off_each_others_cores() -> None:
    num_cores = len(os.sched_getaffinity(0))
    if num_cores < 2:
        pytest.skip("one core")
    walks = []
    for rank in range(2):
        with every_core(rank, 2) as move:
            walk = []
            for _ in range(num_cores):
                move()
                walk.append(min(os.sched_getaffinity(0)))
            walks.append(walk)
    assert all(one != other for one, other in zip(*walks, strict=True))


@needs_affinity
def test_a_core_that_went_away_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock, because cores cannot be taken away here."""

    def refused(_: int, cores: set[int]) -> None:
        raise OSError(22, "Invalid argument")

    allowed = os.sched_getaffinity(0)
    with every_core() as move, monkeypatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", refused)
        move()
    assert os.sched_getaffinity(0) == allowed


def test_lists_of_cores_as_linux_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "cpus"
    path.write_text("0-3,8,10-11\n")
    assert _large(path) == {0, 1, 2, 3, 8, 10, 11}
    path.write_text("\n")
    assert _large(path) == set()
    assert _large(tmp_path / "none") == set()
