"""Bytes alive: storages die with their last reference, cache is not counted, a replaced cache is."""

import torch

from planner.tracing.caches import cached_tensors
from planner.tracing.liveness import Storage, StorageLedger, live_bytes


def test_a_storage_dies_with_its_last_view() -> None:
    clock = 0
    ledger = StorageLedger(lambda: clock)
    tensor = torch.empty(4, 4, device="meta")
    storage = ledger.add(tensor, "a", clock)
    assert storage is not None
    assert storage.num_bytes == 64
    view = tensor.view(16)
    del tensor
    assert storage.died is None
    clock = 3
    del view
    assert storage.died == 2


def test_weights_and_views_of_them_are_not_entered() -> None:
    ledger = StorageLedger(lambda: 0)
    weight = torch.empty(3, device="meta")
    ledger.ignore([weight])
    assert ledger.add(weight[1:], "a", 0) is None
    assert ledger.add(weight.view(3, 1), "b", 1) is None
    assert ledger.find(weight.view(3, 1)) is None


def test_alive_from_birth_to_death() -> None:
    storages = [
        Storage(num_bytes=1, creator="", born=-1, died=1),
        Storage(num_bytes=10, creator="", born=1, died=2),
        Storage(num_bytes=100, creator="", born=2),
    ]
    assert live_bytes(storages, 4, cached={}, replaced={}).tolist() == [1, 11, 110, 100]


def test_cache_is_left_out_but_what_a_view_wastes_is_not() -> None:
    kept = Storage(num_bytes=100, creator="", born=1)
    assert live_bytes([kept], 3, cached={id(kept): 100}, replaced={}).tolist() == [0, 0, 0]
    # A cache that keeps a view of 60 bytes keeps the other 40 alive as well.
    assert live_bytes([kept], 3, cached={id(kept): 60}, replaced={}).tolist() == [0, 40, 40]


def test_a_replaced_cache_counts_while_its_successor_is_there_too() -> None:
    old = Storage(num_bytes=90, creator="", born=-1, died=2)
    new = Storage(num_bytes=100, creator="", born=1)
    live = live_bytes([old, new], 4, cached={id(new): 100}, replaced={id(old): 1})
    assert live.tolist() == [0, 90, 90, 0]


def test_every_tensor_of_a_cache_is_found_once_with_its_window() -> None:
    class Layer:
        is_sliding = True
        sliding_window = 7

        def __init__(self) -> None:
            self.keys = torch.zeros(1, 2, 3, 4)
            self.counter = torch.zeros(())
            self.empty = torch.zeros(0)

    class Cache:
        def __init__(self) -> None:
            layer = Layer()
            self.layers = [layer, layer]
            self.states = {"conv": torch.zeros(2, 5)}
            self.itself = self

    found = cached_tensors(Cache())
    assert sorted((tuple(f.tensor.shape), f.window, f.is_content) for f in found) == [
        ((), 7, False),
        ((1, 2, 3, 4), 7, True),
        ((2, 5), None, True),
    ]


def test_finding_a_cache_leaves_no_reference_to_it() -> None:
    ledger = StorageLedger(lambda: 1)
    cache = [torch.empty(2, 2, device="meta")]
    storage = ledger.add(cache[0], "", 0)
    cached_tensors(cache)
    del cache
    assert storage is not None
    assert storage.died == 0
