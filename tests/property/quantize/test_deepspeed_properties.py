"""Every formula gives DeepSpeed's own bits, by calling the DeepSpeed that is installed."""

import numpy as np
import pytest
import torch
from deepspeed.inference.quantization.utils import DeQuantizer, Quantizer
from deepspeed.module_inject.replace_module import GroupQuantizer
from deepspeed.runtime.weight_quantizer import WeightQuantization
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.errors import GroupSizeError, ScaleOverflowError
from quantize.groups import moq, rows, zero_inference
from quantize.groups.blocks import widen
from quantize.scheme import Moq

from .deepspeed_tables import equal_groups, merged, scale_table
from .weights import DTYPES, bits_of, block_of, dtypes, shapes, tensors

# The first call compiles.
UNHURRIED = settings(deadline=None, max_examples=200)
# torch takes its time over every refusal.
FEW = settings(deadline=None, max_examples=60)


@UNHURRIED
@given(st.data(), shapes, dtypes, st.sampled_from([8, 8, 4]), st.integers(1, 50))
def test_moq_is_quantize_data(
    data: st.DataObject, shape: tuple[int, int], dtype: str, bits: int, groups: int
) -> None:
    """Remainders too: 7 groups of 100 weights are seven of 14 and one of 2."""
    weight = data.draw(tensors(shape, dtype))
    if groups > weight.numel():
        with pytest.raises(GroupSizeError, match="ask for fewer `groups`"):
            Moq(groups=groups).group_numel(shape)
        return
    codes, scales = WeightQuantization().quantize_data(weight, bits, groups)
    try:
        ours = moq.encode(block_of(weight), group_numel=Moq(groups=groups).group_numel(shape), bits=bits)
    except ScaleOverflowError as e:
        assert scales.reshape(-1)[e.group] == 0  # its reciprocal, by which DeepSpeed decodes, is infinite
        return
    assert np.array_equal(ours.codes, codes.numpy())
    assert bits_of(ours.scales) == bits_of(scales.numpy().reshape(-1))
    assert bits_of(moq.kept(ours.scales)) == bits_of((1 / scales.view(-1).unsqueeze(0)).numpy())


@FEW
@given(
    st.data(),
    st.integers(1, 3),
    st.sampled_from([(8, 8), (8, 32), (32, 8), (16, 12)]),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)
def test_moq_keeps_what_quantize_keeps(
    data: st.DataObject, num_layers: int, shape: tuple[int, int], groups: int, extra: bool
) -> None:
    quantizer = WeightQuantization(mlp_extra_grouping=extra)
    names = [
        "attention.query_key_value.weight",
        "attention.dense.weight",
        "mlp.dense_h_to_4h.weight",
        "mlp.dense_4h_to_h.weight",
    ]
    layers = []
    for _ in range(num_layers):
        kept = []
        for i, name in enumerate(names):
            cut = shape if i != 1 else (8, 8)
            weight = data.draw(tensors(cut, "float16"))
            theirs = quantizer.Quantize([weight], 8, groups, name)[0]
            scheme = Moq(groups=groups, mlp_extra_grouping=extra)
            ours = moq.encode(block_of(weight), group_numel=scheme.group_numel(cut))
            assert np.array_equal(ours.codes, theirs.numpy())
            kept.append(moq.kept(ours.scales))
        layers.append(kept)
    assert bits_of(merged(layers)) == bits_of(quantizer.merge_scales().numpy())


@FEW
@given(st.data(), shapes, dtypes, st.integers(1, 3), st.integers(0, 12), st.sampled_from([0, 1]))
def test_rows_is_group_quantizer(
    data: st.DataObject, shape: tuple[int, int], dtype: str, group_size: int, num_groups: int, dim: int
) -> None:
    weight = data.draw(tensors(shape, dtype))
    theirs = _group_quantized(weight, group_size, num_groups, dim)
    try:
        group_numel = equal_groups(shape, group_size=group_size, num_groups=num_groups)
        groups = weight.numel() // group_numel
        ours = rows.encode(block_of(weight), group_numel=group_numel)
        table = scale_table(block_of(weight), num_groups=groups, parallel_dim=dim)
    except GroupSizeError:
        assert theirs is None
        return
    except ScaleOverflowError:
        assert theirs is None or torch.isinf(theirs.scale).any()
        return
    assert theirs is not None
    assert np.array_equal(ours.codes, theirs.numpy())
    assert bits_of(table) == bits_of(theirs.scale.numpy())
    assert bits_of(ours.scales) == bits_of(theirs.scale.numpy().reshape(-1)[:groups])


def _group_quantized(
    weight: torch.Tensor, group_size: int, num_groups: int, dim: int
) -> torch.nn.Parameter | None:
    try:
        return GroupQuantizer(group_size=group_size, num_groups=num_groups).quantize(weight, parallel_dim=dim)
    except (IndexError, RuntimeError):  # from torch: the groups, or the halves' groups, are not equal
        return None


@UNHURRIED
@given(
    st.data(),
    st.sampled_from([(6, 12, 0), (12, 6, 1), (4, 24, 1), (3, 40, 1), (2, 6, 4)]),
    st.sampled_from([2, 3, 6, 1]),
    st.integers(0, 1),
    dtypes,
    st.sampled_from([8, 4]),
)
def test_zero_inference_is_quantizer(
    data: st.DataObject, shape: tuple[int, int, int], group_size: int, dim: int, dtype: str, bits: int
) -> None:
    """Two and three dimensions, groups along each of the first two."""
    cut = tuple(n for n in shape if n > 1)
    weight = data.draw(tensors(cut, dtype))
    if cut[dim] % group_size or (bits == 4 and cut[-1] % 2):
        with pytest.raises(GroupSizeError):
            zero_inference.encode(block_of(weight), group_size=group_size, dim=dim, bits=bits)
        return
    config = {"num_bits": bits, "group_size": group_size, "group_dim": dim, "symmetric": False}
    codes, scales, minimum = Quantizer(config).quantize(weight)
    try:
        ours = zero_inference.encode(block_of(weight), group_size=group_size, dim=dim, bits=bits)
    except ScaleOverflowError as e:
        assert scales.reshape(-1)[e.group] == 0  # code / scale + minimum is NaN
        return
    assert ours.minimum is not None
    assert np.array_equal(ours.codes, codes.numpy())
    assert bits_of(ours.scales) == bits_of(block_of(scales))
    assert np.array_equal(widen(ours.minimum), minimum.float().numpy())
    theirs = DeQuantizer(config, DTYPES[dtype])
    back = zero_inference.decode(ours.codes, ours.scales, block_of(minimum), dim=dim, bits=bits)
    wide = theirs._decompress_uint4_to_uint8(codes) if bits == 4 else codes
    grouped = wide.view(*cut[:dim], cut[dim] // group_size, group_size, *cut[dim + 1 :])
    assert bits_of(back) == bits_of(block_of(theirs._dequantize_int8(grouped, scales, minimum).view(cut)))
