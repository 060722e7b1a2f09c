"""Where ZeRO holds more of a model than `max_live` says. Pure.

Before a module runs its parameters are fetched, and then those that come next: of `prefetch_bucket` elements
together, while fewer than `max_live` are there. The last one may exceed both, whatever its size: a head of
half a gigabyte is fetched while the last block's activation function runs. Modules without parameters look
ahead as well, and a graph does not have them all; so here every module is taken to have one on either side.

Source: PartitionedParameterCoordinator.fetch_sub_module and release_sub_module (0.19.8).
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter

import msgspec

from planner.device_map.keys import ancestors, join
from planner.graph.schema import ModuleGraph, Node
from planner.runtimes.zero_inference.sizes import Sizes


class Excess(msgspec.Struct, frozen=True, kw_only=True):
    """What is there beyond `max_live` while a module's own code runs.

    Attributes:
        node: the module.
        num_elements: beyond `max_live`.
        modules: those that are to blame: without them there would be none.
    """

    node: Node
    num_elements: int
    modules: frozenset[str]


class _Use(msgspec.Struct, frozen=True, kw_only=True):
    """A module's use of a matrix, which has the name of the first one it is tied to."""

    step: int
    fqn: str
    num_elements: int


class _Coordinator:
    """What DeepSpeed counts in one forward whose order it knows."""

    def __init__(self, uses: list[_Use], sizes: Sizes) -> None:
        self.sizes, self.uses, self.queue = sizes, uses, deque(uses)
        self.there: dict[str, int] = {}
        self.total = 0

    def fetch(self, own: list[_Use], step: int) -> None:
        """What the module of this step needs, and no longer waits for."""
        for one in own:
            self._take(one)
        while self.queue and self.queue[0].step <= step:
            self.queue.popleft()

    def look_ahead(self) -> None:
        """Fetch what comes next."""
        left = min(self.sizes.max_live - self.total, self.sizes.prefetch_bucket)
        while self.queue and left > 0:
            left -= self._take(self.queue.popleft())

    def release(self, own: list[_Use], step: int) -> None:
        """Drop what the module had, unless it is wanted again soon."""
        for one in own:
            if one.fqn in self.there and not self._is_wanted(one.fqn, step):
                self.total -= self.there.pop(one.fqn)

    def _take(self, one: _Use) -> int:
        if one.fqn in self.there:
            return 0
        self.there[one.fqn] = one.num_elements
        self.total += one.num_elements
        return one.num_elements

    def _is_wanted(self, fqn: str, step: int) -> bool:
        passed = 0
        for use in islice(self.uses, bisect_right(self.uses, step, key=attrgetter("step")), None):
            if passed >= self.sizes.reuse_distance:
                return False
            if use.fqn == fqn:
                return True
            passed += use.num_elements
        return False


def excesses(graph: ModuleGraph, sizes: Sizes) -> tuple[Excess, ...]:
    """Every module during which more than `max_live` elements are there, only vectors being resident."""
    worst: dict[tuple[str, frozenset[str]], Excess] = {}
    for one in _each(graph, sizes):
        key = one.node.name, one.modules
        if key not in worst or worst[key].num_elements < one.num_elements:
            worst[key] = one
    return tuple(worst.values())


def merged(found: Iterable[Excess]) -> tuple[Excess, ...]:
    """As many as say something of their own: modules of equal costs, as in equal layers, are one."""
    alike: dict[tuple[bytes, int], list[Excess]] = {}
    for one in found:
        alike.setdefault((msgspec.json.encode(one.node.costs), one.num_elements), []).append(one)
    return tuple(
        msgspec.structs.replace(some[0], modules=frozenset().union(*(one.modules for one in some)))
        for some in alike.values()
    )


def _each(graph: ModuleGraph, sizes: Sizes) -> Iterator[Excess]:
    """One forward."""
    nodes = {node.name: node for node in graph.nodes if node.num_calls}
    first = {fqn: group[0] for group in graph.ties for fqn in group}
    owned = [_matrices(node, step, first) for step, node in enumerate(nodes.values())]
    found = _Coordinator([use for uses in owned for use in uses], sizes)

    def excess(node: Node) -> Iterator[Excess]:
        beyond = found.total - sizes.max_live
        if beyond > 0:
            modules = frozenset(fqn.rpartition(".")[0] for fqn in _to_blame(found.there, beyond))
            yield Excess(node=node, num_elements=beyond, modules=modules)

    for step, (node, own) in enumerate(zip(nodes.values(), owned, strict=True)):
        found.look_ahead()
        found.fetch(own, step)
        found.look_ahead()
        yield from excess(node)
        found.release(own, step)
        found.look_ahead()
        # Between two of its children a module's own code runs.
        for name in ancestors(node.name):
            if name in nodes:
                yield from excess(nodes[name])


def _to_blame(there: dict[str, int], beyond: int) -> Iterable[str]:
    """The largest, if that alone makes the difference, as a head does; else any of them."""
    largest = max(there, key=lambda fqn: there[fqn])
    return (largest,) if there[largest] >= beyond else there


def _matrices(node: Node, step: int, first: dict[str, str]) -> list[_Use]:
    """A module's own parameters but vectors, which are always resident."""
    uses = []
    for tensor in node.tensors:
        if tensor.kind == "parameter" and len(tensor.shape) > 1:
            fqn = join(node.name, tensor.name)
            uses.append(_Use(step=step, fqn=first.get(fqn, fqn), num_elements=tensor.num_elements))
    return uses
