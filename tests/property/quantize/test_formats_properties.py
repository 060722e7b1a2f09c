"""The formulas of compressed-tensors and bitsandbytes give the bits that the installed libraries give."""

import numpy as np
import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils.helpers import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize import packing
from quantize.errors import ScaleOverflowError
from quantize.groups import row_absmax, search, symmetric

from .weights import DTYPES, bits_of, block_of, dtypes, shapes, squared_error, tensors

# The first call compiles.
UNHURRIED = settings(deadline=None, max_examples=150)

groupings = st.sampled_from([((3, 12), 4), ((1, 64), 32), ((5, 7), None), ((2, 128), 128), ((4, 6), 1)])


@UNHURRIED
@given(st.data(), groupings, dtypes, st.sampled_from([8, 4]))
def test_symmetric_is_compressed_tensors(
    data: st.DataObject, grouping: tuple[tuple[int, int], int | None], dtype: str, bits: int
) -> None:
    shape, group_size = grouping
    weight = data.draw(tensors(shape, dtype))
    strategy = "channel" if group_size is None else "group"
    args = QuantizationArgs(
        num_bits=bits, type="int", symmetric=True, strategy=strategy, group_size=group_size
    )
    grouped = weight.view(shape[0], -1, group_size or shape[1])
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    theirs = quantize(weight, scale, zero_point, args, dtype=torch.int8)

    ours = symmetric.encode(block_of(weight), group_size=group_size, bits=bits)

    assert np.array_equal(ours.codes, theirs.numpy())
    assert bits_of(ours.scales) == bits_of(block_of(scale))
    back = symmetric.decode(ours.codes, ours.scales)
    assert bits_of(back) == bits_of(block_of(dequantize(theirs, scale, None, args)))
    assert np.array_equal(packing.pack(ours.codes, bits), pack_to_int32(theirs, bits).numpy())


@UNHURRIED
@given(st.integers(1, 9), st.integers(1, 40), st.sampled_from([8, 4]), st.integers(0, 2**32 - 1))
def test_packing_is_compressed_tensors_and_comes_back(rows: int, columns: int, bits: int, seed: int) -> None:
    half = 1 << bits - 1
    codes = np.random.default_rng(seed).integers(-half, half, (rows, columns), np.int8)
    packed = packing.pack(codes, bits)
    assert packed.shape == (rows, packing.packed_columns(columns, bits))
    assert np.array_equal(packed, pack_to_int32(torch.from_numpy(codes), bits).numpy())
    assert np.array_equal(packing.unpack(packed, bits, columns), codes)
    theirs = unpack_from_int32(torch.from_numpy(packed), bits, torch.Size((rows, columns)))
    assert np.array_equal(theirs.numpy(), codes)


@UNHURRIED
@given(st.data(), shapes, dtypes)
def test_row_absmax_is_bitsandbytes(data: st.DataObject, shape: tuple[int, int], dtype: str) -> None:
    weight = data.draw(tensors(shape, dtype))
    half = weight.to(torch.float16)
    try:
        ours = row_absmax.encode(block_of(weight))
    except ScaleOverflowError as e:
        assert torch.isinf(half[e.group]).any()
        return
    codes, scales, _ = int8_vectorwise_quant(half.clone())
    assert np.array_equal(ours.codes, codes.numpy())
    assert bits_of(ours.scales) == bits_of(scales.numpy())
    theirs = int8_vectorwise_dequant(codes, scales)
    back = row_absmax.decode(ours.codes, ours.scales, dtype=block_of(weight).dtype)
    assert bits_of(back) == bits_of(block_of(theirs.to(DTYPES[dtype])))


@UNHURRIED
@given(st.data(), groupings, dtypes, st.sampled_from([8, 4]))
def test_search_is_never_worse_than_the_covering_scale(
    data: st.DataObject, grouping: tuple[tuple[int, int], int | None], dtype: str, bits: int
) -> None:
    shape, group_size = grouping
    weight = data.draw(tensors(shape, dtype))
    block = block_of(weight)
    covering = symmetric.encode(block, group_size=group_size, bits=bits)
    found = search.encode(block, group_size=group_size, bits=bits)
    assert found.scales.shape == covering.scales.shape
    assert found.scales.dtype == covering.scales.dtype
    # Rounding of the sums, which are kept in float32, is all that may be lost.
    theirs = squared_error(weight, covering, shape[0])
    ours = squared_error(weight, found, shape[0])
    assert (ours <= theirs * (1 + 1e-4) + 1e-30).all()


@pytest.mark.parametrize("bits,share", [(8, 0.93), (4, 0.86)])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_search_is_better_on_ordinary_weights(bits: int, share: float, dtype: str) -> None:
    """Bits per weight are equal; the squared error is at most this share of the covering scale's."""
    weight = (torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) * 0.02).to(DTYPES[dtype])
    covering = squared_error(weight, symmetric.encode(block_of(weight), bits=bits), 512).sum()
    assert squared_error(weight, search.encode(block_of(weight), bits=bits), 512).sum() < share * covering
