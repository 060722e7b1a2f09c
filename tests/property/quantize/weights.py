"""Weights for property tests: ordinary ones, and everything at which arithmetic turns."""

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantize.groups.blocks import Block, Encoded, widen

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

dtypes = st.sampled_from(sorted(DTYPES))
shapes = st.tuples(st.integers(1, 9), st.integers(1, 40))


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """A tensor of rows of one kind each: normal, any finite bits, ties, constant, zeros, huge or tiny."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, rest = shape[0], int(np.prod(shape[1:]))
    kinds = draw(st.lists(st.sampled_from(sorted(_ROWS)), min_size=rows, max_size=rows))
    size = 10.0 ** draw(st.integers(-9, 4))
    values = torch.stack([_ROWS[kind](random, rest, size, DTYPES[dtype]) for kind in kinds])
    return values.reshape(shape)


def block_of(tensor: torch.Tensor) -> Block:
    """The block with the tensor's bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return tensor.contiguous().numpy()


def bits_of(array: NDArray[Any]) -> list[Any]:
    """Bits that can be compared, NaN and -0 among them."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}").tolist()


def _finite(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    made = values.to(dtype)
    return torch.where(torch.isfinite(made), made, torch.finfo(dtype).max * torch.sign(values).to(dtype))


def _normal(random: np.random.Generator, count: int, size: float, dtype: torch.dtype) -> torch.Tensor:
    return _finite(torch.from_numpy(random.standard_normal(count) * size), dtype)


def _any_bits(random: np.random.Generator, count: int, size: float, dtype: torch.dtype) -> torch.Tensor:
    raw = torch.from_numpy(random.integers(0, 256, count * dtype.itemsize, dtype=np.uint8)).view(dtype)
    return torch.where(torch.isfinite(raw), raw, torch.zeros((), dtype=dtype))


def _ties(random: np.random.Generator, count: int, size: float, dtype: torch.dtype) -> torch.Tensor:
    halves = random.integers(-256, 256, count) / 2
    halves[random.integers(count)] = 128
    return _finite(torch.from_numpy(halves * 2.0 ** np.round(np.log2(size))), dtype)


def _constant(random: np.random.Generator, count: int, size: float, dtype: torch.dtype) -> torch.Tensor:
    return _finite(torch.full((count,), random.standard_normal() * size, dtype=torch.float64), dtype)


def _zeros(random: np.random.Generator, count: int, size: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(count, dtype=dtype) * torch.from_numpy(random.choice([-1.0, 1.0], count)).to(dtype)


def _huge(random: np.random.Generator, count: int, size: float, dtype: torch.dtype) -> torch.Tensor:
    share = torch.from_numpy(random.uniform(-1, 1, count))
    return _finite(share * torch.finfo(dtype).max, dtype)


def _tiny(random: np.random.Generator, count: int, size: float, dtype: torch.dtype) -> torch.Tensor:
    steps = torch.from_numpy(random.integers(-300, 300, count).astype(np.float64))
    return _finite(steps * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, dtype)


_ROWS = {
    "normal": _normal,
    "any bits": _any_bits,
    "ties": _ties,
    "constant": _constant,
    "zeros": _zeros,
    "huge": _huge,
    "tiny": _tiny,
}


def squared_error(weight: torch.Tensor, encoded: Encoded, groups: int) -> NDArray[np.float64]:
    """The squared error of code * scale, exactly, for each of equal `groups` of rows."""
    scales = widen(encoded.scales).astype(np.float64).reshape(-1, 1)
    restored = encoded.codes.reshape(len(scales), -1).astype(np.float64) * scales
    difference = weight.double().numpy().reshape(len(scales), -1) - restored
    return (difference**2).reshape(groups, -1).sum(1)
