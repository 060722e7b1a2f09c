"""Where ZeRO holds more parameters on the GPU than its limit `max_live`. Pure.

Before a module runs, its parameters are fetched, and then the next ones are prefetched: up to
`prefetch_bucket` elements, while fewer than `max_live` are on the GPU. The last one may exceed both limits by
any amount: a head of half a gigabyte is fetched while the last block's activation function runs. Modules
without parameters prefetch as well, and a graph does not have all of them; so every module is assumed to have
one before and one after it.

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
    """Parameters beyond `max_live` while a module's own operations run.

    Attributes:
        node: the module that runs.
        num_elements: elements on the GPU beyond `max_live`.
        modules: modules whose streamed parameters cause the excess: it disappears when they are resident.
    """

    node: Node
    num_elements: int
    modules: frozenset[str]


class _Use(msgspec.Struct, frozen=True, kw_only=True):
    """A module's use of a matrix.

    Attributes:
        step: position of the module in the order of execution.
        fqn: name of the matrix; of tied ones that of the first.
        num_elements: elements of the matrix.
    """

    step: int
    fqn: str
    num_elements: int


class _Coordinator:
    """The state of DeepSpeed's parameter coordinator in a forward whose order it has recorded."""

    def __init__(self, uses: list[_Use], sizes: Sizes) -> None:
        self.sizes, self.uses, self.queue = sizes, uses, deque(uses)
        #: Matrices on the GPU → elements, and their sum.
        self.live: dict[str, int] = {}
        self.total = 0

    def fetch(self, own: list[_Use], step: int) -> None:
        """Fetch the matrices that the module of this step uses, and remove them from the queue."""
        for use in own:
            self._take(use)
        while self.queue and self.queue[0].step <= step:
            self.queue.popleft()

    def prefetch(self) -> None:
        """Fetch the next matrices of the queue, within the limits."""
        left = min(self.sizes.max_live - self.total, self.sizes.prefetch_bucket)
        while self.queue and left > 0:
            left -= self._take(self.queue.popleft())

    def release(self, own: list[_Use], step: int) -> None:
        """Release the module's matrices, except those that are used again soon."""
        for use in own:
            if use.fqn in self.live and not self._is_reused(use.fqn, step):
                self.total -= self.live.pop(use.fqn)

    def _take(self, use: _Use) -> int:
        if use.fqn in self.live:
            return 0
        self.live[use.fqn] = use.num_elements
        self.total += use.num_elements
        return use.num_elements

    def _is_reused(self, fqn: str, step: int) -> bool:
        """Whether a matrix is used again before `reuse_distance` elements of others have been used."""
        passed = 0
        for use in islice(self.uses, bisect_right(self.uses, step, key=attrgetter("step")), None):
            if passed >= self.sizes.reuse_distance:
                return False
            if use.fqn == fqn:
                return True
            passed += use.num_elements
        return False


def excesses(graph: ModuleGraph, sizes: Sizes) -> tuple[Excess, ...]:
    """The largest excess of every module and set of causes, when only vectors are resident."""
    worst: dict[tuple[str, frozenset[str]], Excess] = {}
    for excess in _in_one_forward(graph, sizes):
        key = excess.node.name, excess.modules
        if key not in worst or worst[key].num_elements < excess.num_elements:
            worst[key] = excess
    return tuple(worst.values())


def merged(excesses: Iterable[Excess]) -> tuple[Excess, ...]:
    """One excess for modules of equal costs, as in equal layers, with the causes of all of them."""
    groups: dict[tuple[bytes, int], list[Excess]] = {}
    for excess in excesses:
        groups.setdefault((msgspec.json.encode(excess.node.costs), excess.num_elements), []).append(excess)
    return tuple(
        msgspec.structs.replace(group[0], modules=frozenset().union(*(excess.modules for excess in group)))
        for group in groups.values()
    )


def _in_one_forward(graph: ModuleGraph, sizes: Sizes) -> Iterator[Excess]:
    """The excesses of one forward, in the order in which they occur."""
    nodes = {node.name: node for node in graph.nodes if node.num_calls}
    first = {fqn: group[0] for group in graph.ties for fqn in group}
    owned = [_matrices(node, step, first) for step, node in enumerate(nodes.values())]
    coordinator = _Coordinator([use for uses in owned for use in uses], sizes)

    def excess(node: Node) -> Iterator[Excess]:
        beyond = coordinator.total - sizes.max_live
        if beyond > 0:
            modules = frozenset(fqn.rpartition(".")[0] for fqn in _causes(coordinator.live, beyond))
            yield Excess(node=node, num_elements=beyond, modules=modules)

    for step, (node, own) in enumerate(zip(nodes.values(), owned, strict=True)):
        coordinator.prefetch()
        coordinator.fetch(own, step)
        coordinator.prefetch()
        yield from excess(node)
        coordinator.release(own, step)
        coordinator.prefetch()
        # A module's own operations run between those of its children.
        for name in ancestors(node.name):
            if name in nodes:
                yield from excess(nodes[name])


def _causes(live: dict[str, int], beyond: int) -> Iterable[str]:
    """The largest matrix, if it alone is at least the excess, as a head is; else all matrices."""
    largest = max(live, key=lambda fqn: live[fqn])
    return (largest,) if live[largest] >= beyond else live


def _matrices(node: Node, step: int, first: dict[str, str]) -> list[_Use]:
    """Uses of a module's own parameters except vectors, which are always resident."""
    uses = []
    for tensor in node.tensors:
        if tensor.kind == "parameter" and len(tensor.shape) > 1:
            fqn = join(node.name, tensor.name)
            uses.append(_Use(step=step, fqn=first.get(fqn, fqn), num_elements=tensor.num_elements))
    return uses
