"""Ranks of one model in lock step, each with NaN in the place of every weight that is not its own.

A rank multiplies the columns of row-parallel weights that are its own, and the ranks' results are summed.
If a role were wrong, NaN would reach the logits, or they would be others.
"""

import copy
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reshard.role_cuts import Names
from reshard.roles import Roles, WeightRoles

NUM_RANKS = 2
WAIT_S = 120
_aten = torch.ops.aten
#: Operation → where its first factor is among the arguments.
_PRODUCTS = {_aten.mm: 0, _aten.bmm: 0, _aten.addmm: 1, _aten.baddbmm: 1}


class Exchange:
    """Sums over the ranks, which are threads."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(NUM_RANKS)
        self.parts: list[torch.Tensor | None] = [None] * NUM_RANKS
        self.count = 0

    def all_reduce(self, rank: int, part: torch.Tensor) -> torch.Tensor:
        self.parts[rank] = part
        self.barrier.wait(WAIT_S)
        total = sum(self.parts[1:], start=self.parts[0].clone())  # type: ignore[union-attr,arg-type]
        self.count += rank == 0
        self.barrier.wait(WAIT_S)
        return total


def owned(weight: WeightRoles, extent: int, rank: int, rows: bool) -> torch.Tensor:
    """Mask of the indices that a rank holds; what every rank has is the first one's in a row weight."""
    everybody = torch.ones(extent, dtype=torch.bool)
    mine = torch.zeros(extent, dtype=torch.bool)
    share = len(weight.groups) // NUM_RANKS
    for number, group in enumerate(weight.groups):
        for begin, end in group:
            everybody[begin:end] = False
            mine[begin:end] |= number // share == rank
    return mine | (everybody if not rows or rank == 0 else torch.zeros_like(mine))


class Rank(TorchDispatchMode):
    """Runs one rank's forward."""

    def __init__(self, model: Any, rank: int, rows: Mapping[str, WeightRoles], exchange: Exchange) -> None:
        super().__init__()
        self._rank = rank
        self._exchange = exchange
        named = dict(model.named_parameters())
        self._rows = {
            named[name].untyped_storage()._cdata: (named[name].shape[role.dim], role)
            for name, role in rows.items()
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = _PRODUCTS.get(func._overloadpacket)
        if first is not None:
            for place in (first + 1, first):
                known = self._rows.get(args[place].untyped_storage()._cdata)
                if known is not None:
                    return self._sum(func, args, kwargs or {}, first, *known)
        return func(*args, **(kwargs or {}))

    def _sum(self, func: Any, args: Any, kwargs: Any, first: int, extent: int, role: WeightRoles) -> Any:
        left, right = args[first : first + 2]
        assert left.shape[-1] == extent, "a row-parallel weight is used in part"
        mine = owned(role, extent, self._rank, rows=True)
        factors = (left[..., mine], right[..., mine, :])
        before = [bias if self._rank == 0 else torch.zeros_like(bias) for bias in args[:first]]
        return self._exchange.all_reduce(self._rank, func(*before, *factors, *args[first + 2 :], **kwargs))


def run(model: Any, inputs: dict[str, Any], roles: Roles, rows: set[str], shifted: str = "") -> torch.Tensor:
    """Logits of both ranks, stacked; `shifted` names a parameter of which rank 0 holds others by one."""
    found = Names(name for name, _ in model.named_parameters()).matches(roles.weights)
    exchange = Exchange()
    outputs: list[torch.Tensor | None] = [None] * NUM_RANKS
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        try:
            mine = copy.deepcopy(model)
            for name, parameter in mine.named_parameters():
                if name in found and name not in rows:
                    mask = owned(found[name], parameter.shape[found[name].dim], rank, rows=False)
                    if name == shifted:
                        mask = mask.roll(1)
                    foreign = torch.nonzero(~mask).flatten()
                    parameter.data.index_fill_(found[name].dim, foreign, float("nan"))
            with torch.no_grad(), Rank(mine, rank, {n: found[n] for n in rows & set(found)}, exchange):
                outputs[rank] = mine(**inputs).logits
        except BaseException as error:
            errors.append(error)
            exchange.barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(NUM_RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors
    assert exchange.count > 0, "nothing was summed over the ranks"
    return torch.stack([output for output in outputs if output is not None])
