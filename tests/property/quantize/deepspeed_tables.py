"""What DeepSpeed makes of scales beyond what is stored here: the references of property tests."""

from collections.abc import Sequence

import numpy as np

from quantize.errors import GroupSizeError
from quantize.groups import rows
from quantize.groups.blocks import Block, Floats, observe


def equal_groups(shape: tuple[int, ...], *, group_size: int = 1, num_groups: int = 0) -> int:
    """GroupQuantizer's weights per group; a `num_groups` above 0 goes before `group_size` (in rows).

    Raises:
        GroupSizeError: the groups would not be equal, which DeepSpeed refuses as well.
    """
    groups = num_groups if num_groups > 0 else shape[0] // group_size
    numel = int(np.prod(shape))
    if groups < 1 or numel % groups:
        raise GroupSizeError(f"{numel} weights of shape {shape} cannot be cut into {groups} equal groups")
    return numel // groups


def scale_table(weight: Block, *, num_groups: int, parallel_dim: int = 0) -> Floats:
    """What GroupQuantizer attaches to its result as `.scale`: float32 (num_groups, 3).

    Its flat order is [scales of the whole | of the first half | of the second half], the halves being cut
    along `parallel_dim` and grouped into `num_groups` again.

    Raises:
        GroupSizeError: a half does not hold `num_groups` equal groups, which DeepSpeed refuses as well.
    """
    half = weight.shape[parallel_dim] // 2
    if half == 0:
        raise GroupSizeError(f"dimension {parallel_dim} of shape {weight.shape} has no halves")
    parts = [weight, *(_cut(weight, parallel_dim, i * half, half) for i in range(2))]
    scales = []
    for part in map(np.ascontiguousarray, parts):
        numel = equal_groups(part.shape, num_groups=num_groups)
        magnitudes = np.zeros(part.size // numel, np.float32)
        observe(part, numel, magnitudes)
        scales.append(rows.scale(magnitudes))
    return np.concatenate(scales).reshape(num_groups, 3)


def merged(layers: Sequence[Sequence[Floats]]) -> Floats:
    """`WeightQuantization.merge_scales`: float32 (layers, 4, most groups), padded with zeros.

    Args:
        layers: for each layer the kept scales, (1, groups) each, of qkv, attention output, h→4h and 4h→h.

    Raises:
        GroupSizeError: layers whose widest tables differ.
    """
    widths = {max(scales.shape[-1] for scales in layer) for layer in layers}
    if len(widths) > 1:
        raise GroupSizeError(f"layers of {', '.join(map(str, sorted(widths)))} groups do not fit one table")
    table = np.zeros((len(layers), 4, widths.pop()), np.float32)
    for i, layer in enumerate(layers):
        for j, scales in enumerate(layer):
            table[i, j, : scales.shape[-1]] = scales[0]
    return table


def _cut(weight: Block, dim: int, begin: int, length: int) -> Block:
    return weight[(slice(None),) * dim + (slice(begin, begin + length),)]
