"""Sizes of ZeRO's buckets and buffers for a model, which are priced and written to the configuration. Pure.

Sizes are in elements, as DeepSpeed's are.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from planner.graph.schema import ModuleGraph
from planner.runtimes.zero_inference.parameters import Parameter, parameters

#: Smaller partitions stay in host memory when the store is NVMe.
#: Source: deepspeed.runtime.swap_tensor.utils.MIN_AIO_BYTES (0.19.8); the aio block size if that is larger.
MIN_SWAPPED_BYTES: Final = 2**20

#: Most elements of a prefetch bucket; the link is busy with far fewer.
_LARGEST_BUCKET: Final = 2**27


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in elements, and the number of buffers.

    Attributes:
        vector: elements of the longest bias or norm weight.
        largest: elements of the largest parameter.
        prefetch_bucket: elements that are prefetched at a time.
        max_live: elements on the GPU from which on nothing more is prefetched.
        num_buffers: partitions that are between NVMe and the GPU at the same time.
        buffer: elements of each of these buffers, when larger than the largest partition; else 0.
        reuse_distance: a parameter is not released when it is used again before this many elements of others.
    """

    vector: int
    largest: int
    prefetch_bucket: int
    max_live: int
    num_buffers: int
    buffer: int = 0
    reuse_distance: int = 0


def sizes_for(graph: ModuleGraph) -> Sizes:
    """Sizes that keep the link busy with the least memory.

    While a block's largest weight is in use, the next one is copied. A partition occupies its NVMe buffer
    until its module has run, so the partitions of a module and of the next one need a buffer each; three more
    serve for reading ahead.
    """
    owned = parameters(graph)
    matrices = [parameter for parameter in owned if not parameter.is_vector] or list(owned)
    in_blocks = [parameter for parameter in matrices if parameter.in_block] or matrices
    widest = _most(in_blocks)
    bucket = min(widest, _LARGEST_BUCKET)
    per_module = max(Counter(parameter.module for parameter in matrices).values(), default=1)
    return Sizes(
        vector=_most([parameter for parameter in owned if parameter.is_vector]),
        largest=_most(owned),
        prefetch_bucket=bucket,
        max_live=widest + bucket,
        num_buffers=2 * per_module + 3,
    )


def buffer_elements(sizes: Sizes, num_ranks: int) -> int:
    """Elements of one NVMe buffer, which holds the largest partition of a model over `num_ranks` ranks."""
    return max(sizes.buffer, -(-sizes.largest // num_ranks))


def _most(owned: Iterable[Parameter]) -> int:
    """Elements of the largest parameter; 0 when there is none."""
    return max((parameter.num_elements for parameter in owned), default=0)
