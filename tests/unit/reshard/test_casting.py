"""Casts are torch's to the bit, and say when a finite number became infinite."""

import pytest
import torch

from reshard.casting import cast

#: More than one block, and a rest.
COUNT = 70_001


def values(special: list[float], source: torch.dtype) -> torch.Tensor:
    """Normal numbers, with `special` at both ends."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(COUNT, dtype=torch.float64, generator=generator) * 100
    if special:
        found[: len(special)] = found[-len(special) :] = torch.tensor(special, dtype=torch.float64)
    return found.to(source)


@pytest.mark.parametrize(
    "source, target, special, overflows",
    [
        ("bfloat16", "float16", [], False),
        ("bfloat16", "float16", [7e4], True),
        ("bfloat16", "float16", [-7e4], True),
        ("bfloat16", "float16", [torch.inf, -torch.inf, torch.nan], False),
        ("float32", "float16", [torch.nan, 7e4], True),
        # The largest number that rounds down, and the least that rounds up.
        ("float32", "float16", [65519.99], False),
        ("float32", "float16", [65520.0], True),
        ("float32", "bfloat16", [3.4e38], True),
        ("float64", "float32", [-1e39], True),
        ("float16", "bfloat16", [65504.0, torch.inf], False),
        ("float16", "float32", [-torch.inf, torch.inf], False),
    ],
)
def test_casts_are_those_of_torch(source: str, target: str, special: list[float], overflows: bool) -> None:
    given = values(special, getattr(torch, source))
    made = torch.empty(COUNT, dtype=getattr(torch, target))
    said = cast(given.view(torch.uint8).numpy(), made.view(torch.uint8).numpy(), source, target)
    assert torch.equal(made.view(torch.uint8), given.to(made.dtype).view(torch.uint8))
    assert said is overflows
