"""Whole logical tensors in memory, for the few and small ones that are needed beside a stream."""

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .dtypes import dtype
from .formats.base import Source
from .plan import make_plan
from .regions import gather, within


def fetch(source: Source, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The tensors called `names`, as unsigned integers of their dtypes' sizes.

    Raises:
        CheckpointError: a file is damaged, or does not hold all of a tensor.
    """
    wanted = {name: source.tensors[name] for name in names}
    arrays: dict[str, NDArray[Any]] = {}
    for copy in make_plan(msgspec.structs.replace(source, tensors=wanted), wanted, ()):
        kind = np.dtype(f"u{dtype(copy.dtype).itemsize_bytes}")
        whole = np.zeros(copy.shape, kind)
        box = tuple((0, extent) for extent in copy.shape)
        scratch = np.empty(whole.nbytes, np.uint8)
        for region in copy.sources:
            gather(region, whole[within(region.box, box)], scratch, source.folder.read_into)
        arrays[copy.name] = whole
    return arrays
