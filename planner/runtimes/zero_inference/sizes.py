"""How large ZeRO's buckets and buffers should be for a model: what the law prices and the configuration says.

Sizes are in elements, as DeepSpeed's are. Pure.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from planner.graph.schema import ModuleGraph
from planner.runtimes.zero_inference.parameters import Parameter, parameters

#: Partitions below this stay in host memory though the store is NVMe.
#: Source: deepspeed.runtime.swap_tensor.utils.MIN_AIO_BYTES (0.19.8); the aio block size if that is larger.
MIN_SWAPPED_BYTES: Final = 2**20

#: More than this is not fetched ahead: the link is busy long before.
_LARGEST_BUCKET: Final = 2**27


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Elements.

    Attributes:
        vector: the longest bias or norm weight.
        largest: the largest parameter.
        prefetch_bucket: fetched ahead of each module.
        max_live: after which nothing more is fetched ahead.
        reuse_distance: what is used again before so many more have been used is not released.
        num_buffers: partitions that are between NVMe and the GPU at once.
        buffer: of each of them, when it is larger than the largest partition; else 0.
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

    While a block's largest weight is in use the next one is on its way. A partition keeps its NVMe buffer
    until its module has run, so a module's own and the next one's must have one each; some are read ahead.
    """
    found = parameters(graph)
    matrices = [one for one in found if not one.is_vector] or list(found)
    repeated = [one for one in matrices if one.in_block] or matrices
    widest = _most(repeated)
    bucket = min(widest, _LARGEST_BUCKET)
    per_module = max(Counter(one.module for one in matrices).values(), default=1)
    return Sizes(
        vector=_most([one for one in found if one.is_vector]),
        largest=_most(found),
        prefetch_bucket=bucket,
        max_live=widest + bucket,
        num_buffers=2 * per_module + 3,
    )


def buffer_elements(sizes: Sizes, num_ranks: int) -> int:
    """An NVMe buffer holds the largest partition."""
    return max(sizes.buffer, -(-sizes.largest // num_ranks))


def _most(found: Iterable[Parameter]) -> int:
    return max((one.num_elements for one in found), default=0)
