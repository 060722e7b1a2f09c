"""Bytes of one part, worked out by hand."""

import pytest

from planner.cost.memory_terms import (
    SLACK_FLOOR_BYTES,
    MemoryTerm,
    host_fragmentation_bytes,
    kv_fragmentation_bytes,
    largest,
    retains_host_pages,
    slack_bytes,
)

_MIB = 2**20


def test_terms_add_up_field_by_field() -> None:
    total = MemoryTerm.total(
        (
            MemoryTerm(weights=100, kv=10),
            MemoryTerm(weights=5, staging=3),
            MemoryTerm(fragmentation=7),
            MemoryTerm(),
        )
    )
    assert total == MemoryTerm(weights=105, kv=10, staging=3, fragmentation=7)
    assert MemoryTerm.total(()) == MemoryTerm()


def test_transient_bytes_are_charged_with_the_allocators_share() -> None:
    # 1,000 stay and 50 are lost; of the 200 + 300 that come and go the allocator holds 2 % more.
    term = MemoryTerm(weights=1000, kv=200, staging=300, fragmentation=50)
    assert term.charged_bytes == pytest.approx(1000 + 50 + 1.02 * 500)


def test_slack_is_a_floor_and_a_share() -> None:
    assert SLACK_FLOOR_BYTES == 96 * _MIB
    assert slack_bytes(0) == 96 * _MIB
    assert slack_bytes(1000 * _MIB) == 96 * _MIB + 20 * _MIB


def test_a_caches_fragmentation_is_a_share_up_to_a_limit() -> None:
    assert kv_fragmentation_bytes(10 * _MIB) == 3 * _MIB
    assert kv_fragmentation_bytes(1000 * _MIB) == 16 * _MIB


def test_pages_are_retained_where_two_and_a_half_times_the_transient_bytes_are_free() -> None:
    assert retains_host_pages(100, 250)
    assert not retains_host_pages(100, 249)
    # 0.8 of them are fragments then.
    assert host_fragmentation_bytes(100, 250) == 80
    assert host_fragmentation_bytes(100, 249) == 0


def test_the_largest_of_nothing_is_zero() -> None:
    assert largest(()) == 0
    assert largest((3, 9, 4)) == 9
