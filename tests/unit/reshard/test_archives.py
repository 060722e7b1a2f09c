"""PyTorch archives laid out in memory equal those that `torch.save` writes to a path, data left out."""

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reshard.archives import Skeleton, lay_out_archive
from reshard.tensors import StoredTensor

_GIB = 1 << 30


class Case(NamedTuple):
    """Tensors' dtypes and shapes, and what stands around them.

    Attributes:
        name: of the file.
        tensors: name → dtype and shape.
        root: keys under which the dictionary of tensors stands.
        extra: other entries beside the outermost key.
    """

    name: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    root: tuple[str, ...] = ()
    extra: dict[str, Any] = {}


CASES = {
    "no tensors": Case("model.pt", {}),
    "one": Case("model_optim_rng.pt", {"x": ("float16", (3,))}),
    "points in the name": Case("tp_00.part.pt", {"x": ("float16", (3,))}),
    "under a key": Case(
        "a.pt", {"x": ("bfloat16", (2, 3)), "y": ("int8", ())}, ("model",), {"args": {"a": 1}, "step": 7}
    ),
    "without elements": Case("a.pt", {"x": ("int8", (0,)), "y": ("int8", (5,)), "z": ("float32", (0, 4))}),
    "long ones, whose bytes are holes": Case(
        "a.pt", {"x": ("float32", (_GIB, 5)), "y": ("int8", (3,)), "z": ("float32", (_GIB, 2))}
    ),
    "together beyond 32 bits": Case("a.pt", dict.fromkeys("xyz", ("int8", (3 * _GIB,)))),
} | {
    f"ends {distance} bytes from 32 bits": Case(
        "longer_than_archive.pt", {"x": ("int8", (2 * _GIB,)), "y": ("int8", (2 * _GIB - distance,))}
    )
    for distance in range(400, 2600, 200)
}


def stored(case: Case) -> tuple[StoredTensor, ...]:
    return tuple(StoredTensor(name=n, dtype=d, shape=s, chunks=()) for n, (d, s) in case.tensors.items())


def laid_out(case: Case) -> Skeleton:
    return lay_out_archive(case.name, stored(case), "the manifest", root=case.root, extra=case.extra)


def saved(case: Case, folder: Path) -> Path:
    """The same by torch alone; what it leaves out are holes."""
    held: Any = OrderedDict()
    with FakeTensorMode():
        for name, (dtype, shape) in case.tensors.items():
            held[name] = torch.empty(shape, dtype=getattr(torch, dtype))
    held._reshard = "the manifest"
    value: Any = held
    for key in reversed(case.root):
        value = {key: value}
    if case.root:
        value |= {k: argparse.Namespace(**v) if k == "args" else v for k, v in case.extra.items()}
    torch.serialization.set_crc32_options(False)
    try:
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(value, folder / case.name)
    finally:
        torch.serialization.set_crc32_options(True)
    return folder / case.name


@pytest.mark.parametrize("name", CASES)
def test_the_bytes_are_those_of_torch(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    skeleton = laid_out(case)
    path = saved(case, tmp_path)
    assert path.stat().st_size == skeleton.size_bytes
    with path.open("rb") as stream:
        for at, raw in skeleton.parts:
            stream.seek(at)
            assert stream.read(len(raw)) == raw, f"from byte {at} on"


@pytest.mark.parametrize("name", CASES)
def test_parts_and_data_together_are_the_file(name: str) -> None:
    case = CASES[name]
    skeleton = laid_out(case)
    covered = [(at, at + len(raw)) for at, raw in skeleton.parts]
    sizes = [t.size_bytes for t in stored(case)]
    covered += [(at, at + n) for at, n in zip(skeleton.offsets_bytes, sizes, strict=True) if n]
    end = 0
    for begin, next_end in sorted(covered):
        assert begin == end
        end = next_end
    assert end == skeleton.size_bytes


def test_torch_finds_the_tensors_where_they_were_said_to_be(tmp_path: Path) -> None:
    case = CASES["under a key"]
    skeleton = laid_out(case)
    with FakeTensorMode(), torch.serialization.safe_globals([argparse.Namespace]):
        found = torch.load(saved(case, tmp_path), weights_only=True)["model"]
    offsets = tuple(found[t.name].untyped_storage()._checkpoint_offset for t in stored(case))
    assert offsets == skeleton.offsets_bytes
