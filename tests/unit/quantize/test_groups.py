"""The formulas by hand, and what they say of weights and buffers that they do not take."""

import hashlib
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from quantize import floats, packing
from quantize.errors import (
    GroupSizeError,
    InvalidSchemeError,
    NonfiniteWeightError,
    ScaleOverflowError,
    UnsupportedBlockError,
)
from quantize.groups import blocks, moq, row_absmax, rows, search, symmetric, zero_inference

F32 = np.float32
ENCODERS = {
    "moq": lambda b: moq.encode(b, group_numel=64),
    "rows": lambda b: rows.encode(b, group_numel=64),
    "symmetric": lambda b: symmetric.encode(b, group_size=64),
    "search": lambda b: search.encode(b, group_size=64),
    "row_absmax": row_absmax.encode,
    "zero_inference": lambda b: zero_inference.encode(b, group_size=64),
    "zero_inference dim 0": lambda b: zero_inference.encode(b, group_size=4, dim=0),
}


def test_moq_by_hand() -> None:
    """The multiplier is 256 / (2 * 2 + 1e-5) = 63.99984: 1 becomes 64, 2 becomes 128, which is clamped."""
    made = moq.encode(np.array([[1, 2, -2, 0, -1]], F32), group_numel=4)
    assert made.codes.tolist() == [[64, 127, -128, 0, -128]]
    # The rest, -1 alone, has s = 256 / (2 + 1e-5).
    assert made.scales.tolist() == [F32(256) / F32(4.00001), F32(256) / F32(2.00001)]
    assert moq.kept(made.scales).shape == (1, 2)
    back = moq.decode(made.codes, moq.kept(made.scales), group_numel=4, dtype=np.dtype(F32))
    assert np.abs(back - [[1, 2, -2, 0, -1]]).max() <= 2 / 127


def test_rows_by_hand() -> None:
    """Scales 2 * 2 / 256 and 64 * 2 / 256; 31.25 / 0.5 = 62.5 is a tie, to the even 62."""
    made = rows.encode(np.array([[1, 2], [31.25, -64]], F32), group_numel=2)
    assert made.scales.tolist() == [1 / 64, 1 / 2]
    assert made.codes.tolist() == [[64, 127], [62, -128]]
    restored = rows.decode(made.codes, made.scales, group_numel=2, dtype=np.dtype(np.float16))
    assert restored.dtype == np.float16
    assert restored.tolist() == [[1, 127 / 64], [31, -64]]


def test_symmetric_by_hand() -> None:
    """Scale 127.5 / 127.5; -127.5 is clamped to nothing below -128, and is a tie to the even -128."""
    made = symmetric.encode(np.array([[127.5, -127.5, 3.5, 0.5]], np.float16), group_size=4)
    assert made.scales.tolist() == [[1.0]]
    assert made.codes.tolist() == [[127, -128, 4, 0]]
    made = symmetric.encode(np.array([[7.5, -7.5, 3.5, 0.5]], np.float16), group_size=None, bits=4)
    assert (made.scales.tolist(), made.codes.tolist()) == ([[1.0]], [[7, -8, 4, 0]])


def test_row_absmax_by_hand() -> None:
    made = row_absmax.encode(np.array([[127, -63.5, 1.0], [0, 0, 0]], F32))
    # 127 / 127 by the reciprocal is 127 * float32(1 / 127), a little over 1, so the tie -63.5 is none.
    assert made.codes.tolist() == [[127, -64, 1], [0, 0, 0]]
    assert made.scales.tolist() == [127, 0]


def test_zero_inference_by_hand() -> None:
    """From -1 to 14 in 4 bits: scale 15 / 15; codes are the weights plus 1, two to a byte."""
    made = zero_inference.encode(np.array([[-1, 14, 4, 1.5]], F32), group_size=4, bits=4)
    assert made.scales.tolist() == [[[F32(1) / F32(15) * F32(15)]]]
    assert made.minimum is not None
    assert made.minimum.tolist() == [[[-1.0]]]
    assert made.codes.tolist() == [[0 << 4 | 15, 5 << 4 | 2]]
    back = zero_inference.decode(made.codes, made.scales, made.minimum, bits=4)
    assert back.tolist() == [[-1, 14, 4, 1]]


def test_search_clips_what_is_rare() -> None:
    """One weight of 9 among whole numbers up to 7: clipping it, 4 bits restore all others nearly exactly."""
    weights = np.array([[9.0, *([1, -2, 3, -4, 5, -6, 7, 0] * 16)]], F32)
    covering = symmetric.encode(weights, group_size=None, bits=4)
    found = search.encode(weights, group_size=None, bits=4)
    assert covering.scales[0, 0] == F32(9 / 7.5)
    assert abs(found.scales[0, 0] - 1) < 0.03
    assert found.codes[0, 1:].tolist() == weights[0, 1:].tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_zeros_and_constants_come_back_exactly(dtype: str) -> None:
    for value in (0.0, -0.0, 0.375):
        block = blocks.narrow(np.full((4, 64), value, F32), blocks.view(np.zeros(4, np.uint8), dtype).dtype)
        made = zero_inference.encode(block, group_size=64)
        assert made.minimum is not None
        assert np.isinf(blocks.widen(made.scales)).all()
        assert (blocks.widen(zero_inference.decode(made.codes, made.scales, made.minimum)) == value).all()
        for name in ("moq", "rows", "symmetric", "search", "row_absmax"):
            if value == 0:
                assert not ENCODERS[name](block).codes.any()


def test_a_narrow_float16_group_is_lost_as_deepspeed_loses_it() -> None:
    """It spans 0.002: 255 / 0.002 exceeds float16, and every weight comes back as the least one."""
    block = np.array([[0.001, 0.002, 0.003, 0.0015]], np.float16)
    made = zero_inference.encode(block, group_size=4)
    assert made.codes.tolist() == [[0, 255, 255, 255]]
    assert made.minimum is not None
    back = zero_inference.decode(made.codes, made.scales, made.minimum)
    assert (back == block[0, 0]).all()
    wide = zero_inference.encode(block.astype(F32), group_size=4)
    assert wide.minimum is not None
    assert np.abs(zero_inference.decode(wide.codes, wide.scales, wide.minimum) - block).max() < 1e-5


@pytest.mark.parametrize("name", sorted(ENCODERS))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_place_of_a_nonfinite_weight_is_told(name: str, dtype: type, value: float) -> None:
    """The first of two, behind what fits the cache at once."""
    weights = np.zeros((40000, 64), F32)
    weights[33333, 17] = weights[33334, 3] = value
    with pytest.raises(NonfiniteWeightError, match="position 2133329 is NaN or infinite") as caught:
        ENCODERS[name](blocks.narrow(weights, np.dtype(dtype)))
    assert caught.value.index == 33333 * 64 + 17


@pytest.mark.parametrize(
    "name,weight",
    [("moq", 3e38), ("rows", 3e38), ("row_absmax", 7e4), ("zero_inference", 3e38)],
)
def test_the_group_of_a_weight_too_large_is_told(name: str, weight: float) -> None:
    weights = np.zeros((40000, 64), F32)
    weights[33333, 17], weights[33333, 18] = weight, -weight
    with pytest.raises(ScaleOverflowError, match="weights of group 33333 exceed") as caught:
        ENCODERS[name](weights)
    assert caught.value.group == 33333


def test_arrays_that_are_no_blocks_are_refused() -> None:
    with pytest.raises(UnsupportedBlockError, match="not float64"):
        moq.encode(np.zeros((2, 2)), group_numel=2)
    with pytest.raises(UnsupportedBlockError, match="C-contiguous"):
        symmetric.encode(np.zeros((4, 4), F32).T, group_size=2)
    with pytest.raises(UnsupportedBlockError, match=r"int8 \(4, 3\); contiguous int8 \(4, 4\) is needed"):
        symmetric.encode(np.zeros((4, 4), F32), group_size=2, codes=np.zeros((4, 3), np.int8))
    with pytest.raises(UnsupportedBlockError, match="weights of int8 cannot be quantized"):
        blocks.view(np.zeros(4, np.uint8), "int8")
    with pytest.raises(UnsupportedBlockError, match="2 scales for 8 codes in groups of 2; 4 are needed"):
        rows.decode(np.zeros((2, 4), np.int8), np.ones(2, F32), group_numel=2, dtype=np.dtype(F32))
    with pytest.raises(InvalidSchemeError, match="codes of 5 bits are not packed"):
        packing.pack(np.zeros((2, 2), np.int8), 5)


def test_groups_that_do_not_tile_a_block_are_refused() -> None:
    with pytest.raises(
        GroupSizeError, match="groups of 5 do not divide an input dimension of 64; 64, 32, 16"
    ):
        symmetric.encode(np.zeros((4, 64), F32), group_size=5)
    with pytest.raises(GroupSizeError, match="256 weights are no whole groups of 100"):
        rows.encode(np.zeros((4, 64), F32), group_numel=100)


def _weights(shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float16]]:
    return (np.random.default_rng(0).standard_normal(shape) * 0.02).astype(np.float16)


def _digest() -> str:
    """Of codes and scales whose arithmetic leans on float16 and on sums."""
    block, found = _weights((64, 200)), hashlib.sha256()
    for made in (
        symmetric.encode(block, group_size=None),
        search.encode(block, group_size=100, bits=4),
        zero_inference.encode(block, group_size=50),
        row_absmax.encode(blocks.widen(block)),
    ):
        found.update(made.codes.tobytes() + made.scales.tobytes())
    return found.hexdigest()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for the oldest x86-64")
def test_a_cpu_without_vectors_or_halves_gives_the_same_bits(repository: Path) -> None:
    """In a child process that compiles for the first x86-64 processors."""
    program = f"import runpy; print(runpy.run_path({__file__!r})['_digest']())"
    child = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ
        | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == _digest()


def test_halves_convert_the_same_without_instructions() -> None:
    """Every float16 but NaN, and float32 around every border."""
    widen, rounds, bits_of = map(numba.njit, (floats.widen_half, floats.round_to_half, floats.half_bits))
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
    halves = halves[~np.isnan(halves.view(np.float16))]
    for half in halves[::7]:
        value = widen(half)
        assert F32(value).tobytes() == half.view(np.float16).astype(F32).tobytes()
        assert bits_of(F32(value)) == half
    borders = [
        0.0,
        2.0**-25,
        2.0**-24,
        2.0**-14,
        2.0**-14 * (1 - 2.0**-12),
        1 + 2.0**-11,
        65504,
        65519.99,
        65520,
    ]
    near = [np.nextafter(F32(b), F32(way)) for b in borders for way in (-np.inf, b, np.inf)]
    random = np.random.default_rng(0).integers(0, 1 << 32, 2000, np.uint32).view(F32)
    with np.errstate(over="ignore", invalid="ignore"):
        for number in [*near, *(-n for n in near), *random[~np.isnan(random)], F32(np.inf)]:
            assert F32(rounds(number)).tobytes() == number.astype(np.float16).astype(F32).tobytes()


def test_threads_at_once_give_what_one_gives() -> None:
    """Row blocks into one preallocated buffer, as a streaming caller does."""
    weights = _weights((512, 256))
    codes, alone = np.empty(weights.shape, np.int8), symmetric.encode(weights, group_size=32)

    def part(begin: int) -> np.ndarray[Any, Any]:
        there = slice(begin, begin + 16)
        made = symmetric.encode(weights[there], group_size=32, codes=codes[there])
        assert np.shares_memory(made.codes, codes)
        return made.scales

    with ThreadPoolExecutor(4) as pool:
        scales = np.concatenate(list(pool.map(part, range(0, 512, 16))))
    assert np.array_equal(codes, alone.codes)
    assert np.array_equal(scales, alone.scales)


def test_weight_shape_is_what_packed_words_do_not_tell() -> None:
    assert packing.weight_shape((3, 10)).tolist() == [3, 10]
    assert packing.weight_shape((3, 10)).dtype == np.int64
    assert packing.pack(np.zeros((3, 10), np.int8), 8).tolist() == [[-2139062144, -2139062144, 32896]] * 3
