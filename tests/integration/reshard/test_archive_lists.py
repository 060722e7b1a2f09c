"""Lists of tensors under one key of a PyTorch archive, as DeepSpeed keeps int8 and its scales."""

from pathlib import Path

import pytest
import torch

from reshard.containers import lay_out
from reshard.errors import DamagedFileError
from reshard.formats.base import TargetFile
from reshard.formats.reading import contents
from reshard.storage import open_folder
from reshard.target_files import create
from reshard.tensors import StoredTensor

TENSORS = (
    StoredTensor(name="before", dtype="float16", shape=(3,), chunks=()),
    StoredTensor(name="block.0.w.0", dtype="int8", shape=(4, 6), chunks=()),
    StoredTensor(name="block.0.w.1", dtype="float32", shape=(4, 1), chunks=()),
    # A name that ends in a number, and is no part of a list.
    StoredTensor(name="block.0", dtype="float16", shape=(2, 2), chunks=()),
)


@pytest.mark.parametrize("root", [(), ("model",), ("model", "state")])
def test_torch_reads_the_list_whose_places_were_told(root: tuple[str, ...], tmp_path: Path) -> None:
    file = TargetFile(
        name="a.pt", container="torch", tensors=TENSORS, root=root, extra={"step": 7}, lists=("block.0.w",)
    )
    laid_out = lay_out(file, "the manifest")
    create(laid_out, tmp_path / "a.pt")
    values = {
        "before": torch.arange(3, dtype=torch.float16),
        "block.0.w.0": torch.arange(24, dtype=torch.int8).reshape(4, 6),
        "block.0.w.1": torch.arange(4, dtype=torch.float32).reshape(4, 1) / 8,
        "block.0": torch.arange(4, dtype=torch.float16).reshape(2, 2),
    }
    with (tmp_path / "a.pt").open("r+b") as stream:
        for tensor in laid_out.tensors:
            stream.seek(tensor.offset_bytes)
            stream.write(values[tensor.name].numpy().tobytes())
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    for key in root:
        found = found[key]
    assert list(found) == ["before", "block.0.w", "block.0"]
    assert isinstance(found["block.0.w"], list)
    loaded = [found["before"], *found["block.0.w"], found["block.0"]]
    for tensor, value in zip(loaded, values.values(), strict=True):
        assert torch.equal(tensor, value)
    held = contents(open_folder(str(tmp_path)), "a.pt", root)
    assert {name: (t.dtype, t.shape, t.offset_bytes) for name, t in held.tensors.items()} == {
        t.name: (t.dtype, t.shape, t.offset_bytes) for t in laid_out.tensors
    }


def test_lists_are_read_at_every_depth(tmp_path: Path) -> None:
    torch.save({"a": [torch.zeros(2), {"b": [torch.ones(3), 5]}], "c": []}, tmp_path / "a.pt")
    held = contents(open_folder(str(tmp_path)), "a.pt")
    assert {name: t.shape for name, t in held.tensors.items()} == {"a.0": (2,), "a.1.b.0": (3,)}


def test_a_list_that_holds_itself_is_refused(tmp_path: Path) -> None:
    held: list[object] = [torch.zeros(2)]
    held.append(held)
    torch.save({"a": held}, tmp_path / "a.pt")
    with pytest.raises(DamagedFileError, match="holds itself"):
        contents(open_folder(str(tmp_path)), "a.pt")


def test_a_key_that_stands_for_two_tensors_is_not_read_as_one(tmp_path: Path) -> None:
    torch.save({"a": [torch.zeros(2)], "a.0": torch.ones(3)}, tmp_path / "a.pt")
    with pytest.raises(DamagedFileError, match=r"a\.0"):
        contents(open_folder(str(tmp_path)), "a.pt")
