"""The plan of a run: which region of which source file goes to which region of which target file. Pure."""

from collections.abc import Iterable, Mapping

import msgspec

from .dtypes import dtype
from .errors import InconsistentShardsError
from .formats.base import Source
from .layout import Box, overlap, volume
from .tensors import FileRegion, LogicalTensor, StoredTensor, file_regions


class Derived(msgspec.Struct, frozen=True, kw_only=True):
    """A logical tensor of the target that is made from one of the source, such as codes or scales.

    Attributes:
        name: the tensor's.
        dtype: torch's name.
        shape: its dimensions.
        targets: where its bytes go.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    targets: tuple[FileRegion, ...]


class TensorCopy(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that happens to one logical tensor.

    Attributes:
        name: the tensor's.
        dtype: in the source.
        target_dtype: in the targets.
        shape: its dimensions.
        sources: disjoint regions that together are the tensor.
        replicas: regions of the source that hold what another holds as well; read, and compared.
        targets: where its bytes go.
        digest: the SHA-256 that the source says it has, in the source's dtype.
        derived: what is made from it, where it does not stay itself; then it has no targets of its own.
    """

    name: str
    dtype: str
    target_dtype: str
    shape: tuple[int, ...]
    sources: tuple[FileRegion, ...]
    replicas: tuple[FileRegion, ...]
    targets: tuple[FileRegion, ...]
    digest: str | None = None
    derived: tuple[Derived, ...] = ()

    @property
    def read_bytes(self) -> int:
        """Bytes read, each of them once."""
        return dtype(self.dtype).itemsize_bytes * sum(volume(p.box) for p in (*self.sources, *self.replicas))

    @property
    def written_bytes(self) -> int:
        """Bytes written to all targets."""
        own = dtype(self.target_dtype).itemsize_bytes * sum(volume(p.box) for p in self.targets)
        made = (dtype(d.dtype).itemsize_bytes * volume(p.box) for d in self.derived for p in d.targets)
        return own + sum(made)


#: (path of the file, rank, its tensors with offsets)
Placed = tuple[str, int | None, tuple[StoredTensor, ...]]


def make_plan(
    source: Source,
    tensors: Mapping[str, LogicalTensor],
    targets: Iterable[Placed],
    derived: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[TensorCopy, ...]:
    """The copies that fill `targets` from `source`, one for each logical tensor, in the source's order.

    Args:
        source: what is read.
        tensors: the logical tensors as the targets have them: dtypes may differ.
        targets: the files to fill, their tensors' offsets known.
        derived: source tensor → tensors of the targets that are made from it.

    Raises:
        InconsistentShardsError: the source's files do not hold all of a tensor.
    """
    given = _by_tensor((f.name, f.rank, f.tensors) for f in source.files)
    wanted = _by_tensor(targets)
    made = derived or {}
    result = []
    for name, tensor in source.tensors.items():
        sources, replicas = _disjoint(name, tensor, given.get(name, []))
        result.append(
            TensorCopy(
                name=name,
                dtype=tensor.dtype,
                target_dtype=tensor.dtype if name in made else tensors[name].dtype,
                shape=tensor.shape,
                sources=sources,
                replicas=replicas,
                targets=() if name in made else tuple(wanted.get(name, ())),
                digest=source.digests.get(name),
                derived=_derived(made.get(name, ()), tensors, wanted),
            )
        )
    return tuple(result)


def _derived(
    names: Iterable[str], tensors: Mapping[str, LogicalTensor], wanted: Mapping[str, list[FileRegion]]
) -> tuple[Derived, ...]:
    return tuple(
        Derived(
            name=name,
            dtype=tensors[name].dtype,
            shape=tensors[name].shape,
            targets=tuple(wanted.get(name, ())),
        )
        for name in names
    )


def _by_tensor(files: Iterable[Placed]) -> dict[str, list[FileRegion]]:
    regions: dict[str, list[FileRegion]] = {}
    for file, rank, stored in files:
        for tensor in stored:
            for name, region in file_regions(tensor, file, rank):
                regions.setdefault(name, []).append(region)
    return regions


def _disjoint(
    name: str, tensor: LogicalTensor, given: list[FileRegion]
) -> tuple[tuple[FileRegion, ...], tuple[FileRegion, ...]]:
    """Regions that tile the tensor, and those that repeat what the former hold."""
    size = dtype(tensor.dtype).itemsize_bytes
    sources: list[FileRegion] = []
    replicas: list[FileRegion] = []
    for region in given:
        rest = [region.box]
        for known in sources:
            common = overlap(region.box, known.box)
            if common is None:
                continue
            replicas += [region.part(c, size) for box in rest if (c := overlap(box, common)) is not None]
            rest = [left for box in rest for left in without(box, common)]
        sources += [region.part(box, size) for box in rest]
    held = sum(volume(p.box) for p in sources)
    needed = volume(tuple((0, n) for n in tensor.shape))
    if held != needed:
        raise InconsistentShardsError(
            f"the files hold {held} of the {needed} elements of {name}; a shard is missing, or of "
            "another degree"
        )
    return tuple(sources), tuple(replicas)


def without(box: Box, hole: Box) -> list[Box]:
    """Boxes that tile what is left of `box` when `hole` is taken out."""
    common = overlap(box, hole)
    if common is None:
        return [box]
    left: list[Box] = []
    rest = list(box)
    for dim, (begin, end) in enumerate(common):
        low, high = rest[dim]
        if low < begin:
            left.append((*rest[:dim], (low, begin), *rest[dim + 1 :]))
        if end < high:
            left.append((*rest[:dim], (end, high), *rest[dim + 1 :]))
        rest[dim] = (begin, end)
    return left
