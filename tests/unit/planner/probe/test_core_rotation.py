"""A thread on its way over the cores that it may use."""

import os
from pathlib import Path

import pytest

from planner.probe.core_rotation import CoreRotation, _large

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="threads cannot be moved here"
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """What the system is asked for, and does: where a thread is a moment later nobody can promise."""
    found: list[set[int]] = []
    real = os.sched_setaffinity

    def noted(thread: int, cores: set[int]) -> None:
        found.append(cores)
        real(thread, cores)

    monkeypatch.setattr(os, "sched_setaffinity", noted)
    return found


@needs_affinity
def test_every_core_gets_its_turn_and_the_thread_is_free_at_once(asked: list[set[int]]) -> None:
    allowed = os.sched_getaffinity(0)
    move = CoreRotation()
    for _ in range(2 * len(allowed)):
        move()
        assert os.sched_getaffinity(0) == allowed
    if len(allowed) > 1:
        visited, freed = asked[::2], asked[1::2]
        assert sorted(min(cores) for cores in visited) == sorted([*allowed, *allowed])
        assert visited[: len(allowed)] == visited[len(allowed) :]
        assert freed == [allowed] * len(visited)


@needs_affinity
def test_ranks_keep_off_each_others_cores(asked: list[set[int]]) -> None:
    num_cores = len(os.sched_getaffinity(0))
    if num_cores < 2:
        pytest.skip("one core")
    walks = []
    for rank in range(2):
        asked.clear()
        move = CoreRotation(rank, 2)
        for _ in range(num_cores):
            move()
        walks.append(asked[::2])
    assert all(one != other for one, other in zip(*walks, strict=True))


@needs_affinity
def test_a_core_that_went_away_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock, because cores cannot be taken away here."""
    tried = []

    def refused(_: int, cores: set[int]) -> None:
        tried.append(cores)
        raise OSError(22, "Invalid argument")

    allowed = os.sched_getaffinity(0)
    move = CoreRotation()
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", refused)
        move()
    assert len(tried) == 2 * (len(allowed) > 1)
    assert os.sched_getaffinity(0) == allowed


def test_lists_of_cores_as_linux_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "cpus"
    path.write_text("0-3,8,10-11\n")
    assert _large(path) == {0, 1, 2, 3, 8, 10, 11}
    path.write_text("\n")
    assert _large(path) == set()
    assert _large(tmp_path / "none") == set()
