"""Quantized, then cut, equals cut, then quantized; and a cut through a group is refused."""

import json
from pathlib import Path

import pytest
import torch

from quantize.formats.plain import output
from quantize.restore import dequantize
from quantize.scheme import Groups, Moq, Rows, Scheme, Symmetric, SymmetricSearch, ZeroInference
from reshard.errors import CannotSplitError
from reshard.job import Request
from tests.integration.quantize.making import chosen, make, save
from tests.integration.quantize.test_plain import coded
from tests.integration.reshard.children import contents
from tests.integration.reshard.oracle import rank_shard
from tests.integration.reshard.variants import VARIANTS, Tensors, Variant, assert_equal, cut, load

#: Four heads of 16 and an MLP of 96: at tp 2 parts of 48 columns, at tp 4 of 24.
SETTINGS = {"num_key_value_heads": 4}
VARIANT: Variant = VARIANTS["llama"]._replace(heads=4, head_dim=16, kv_heads=4)

#: Schemes whose groups no cut at 2 and 4 goes through, or of which each rank needs all scales.
WHOLE: dict[str, Scheme] = {
    "groups": Groups(group_size=8),
    "symmetric": Symmetric(group_size=8),
    "symmetric-search": SymmetricSearch(group_size=8),
    "zero-inference": ZeroInference(group_size=8),
}
#: One scale serves a row wherever it is cut: what the columns of a rank mean does not change.
BY_ROW: dict[str, Scheme] = {
    "rows": Rows(),
    "groups-row": Groups(group_size=None),
    "symmetric-row": Symmetric(group_size=None),
    "moq-rows": Moq(groups=32),
}


@pytest.mark.parametrize("name", WHOLE | BY_ROW)
def test_cut_on_the_way_or_later_are_the_same_files(name: str, work: Path) -> None:
    scheme = (WHOLE | BY_ROW)[name]
    save("llama", work / "model", **SETTINGS)
    make(work / "model", work / "whole", output(scheme))
    for tp_size in (2, 4):
        make(work / "model", work / f"direct{tp_size}", output(scheme), tp_size)
        cut(work / "whole", work / f"later{tp_size}", tp_size)
        direct, later = (contents_without_origin(work / f"{kind}{tp_size}") for kind in ("direct", "later"))
        assert direct == later
        cut(work / f"direct{tp_size}", work / f"merged{tp_size}", 1, format="huggingface")
        assert_equal(load(work / f"merged{tp_size}"), load(work / "whole"))


def contents_without_origin(folder: Path) -> dict[str, object]:
    """Files of a set: tensors, and the small ones; manifests differ in what they were made of."""
    found: dict[str, object] = {
        name: made for name, made in contents(folder).items() if name == "config.json"
    }
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        header.pop("__metadata__")
        found[path.name] = (header, raw[8 + size :])
    return found


@pytest.mark.parametrize("tp_size", [2, 4])
@pytest.mark.parametrize("name", WHOLE)
def test_quantizing_what_was_cut_gives_the_same(name: str, tp_size: int, work: Path) -> None:
    scheme = WHOLE[name]
    tensors = save("llama", work / "model", **SETTINGS)
    make(work / "model", work / "out", output(scheme), tp_size)
    names = chosen(work / "model")
    for rank in range(tp_size):
        mine = rank_shard(VARIANT, tensors, tp_size, rank)
        expected: Tensors = {n: t for n, t in mine.items() if n not in names}
        for n in names:
            module = n.removesuffix(".weight")
            expected |= {f"{module}.{p}": t for p, t in coded(scheme, mine[n].contiguous()).items()}
        assert_equal(load(work / "out", f"*-rank-{rank:02d}-*"), expected, f"rank {rank}")


@pytest.mark.parametrize("name", WHOLE | BY_ROW)
def test_shards_mean_what_the_whole_means(name: str, work: Path) -> None:
    """Decoded from shards as from the whole."""
    scheme = (WHOLE | BY_ROW)[name]
    save("llama", work / "model", **SETTINGS)
    make(work / "model", work / "whole", output(scheme))
    make(work / "model", work / "shards", output(scheme), 2)
    for kind in ("whole", "shards"):
        request = Request(
            source=str(work / kind),
            output=work / f"plain-{kind}",
            degrees=(1,),
            format="huggingface",
            memory_bytes=4 << 30,
        )
        dequantize(request, "float32")
    found = load(work / "plain-shards")
    assert_equal(found, load(work / "plain-whole"))
    assert all(t.dtype == torch.float32 for t in found.values())


@pytest.mark.parametrize(
    "scheme, tp_size, message",
    [
        (Symmetric(group_size=32), 2, "goes through a group of 32 quantized elements; degrees that work: 1"),
        (
            SymmetricSearch(group_size=16),
            4,
            "goes through a group of 16 quantized elements; degrees that work",
        ),
        (Groups(group_size=32), 4, "goes through a group of 32"),
        (ZeroInference(group_size=32), 2, "goes through a group of 32"),
        (Rows(group_rows=32), 4, "goes through a group of 32"),
        # Chunks that are no whole rows mean nothing to a rank's columns.
        (Moq(groups=128), 2, "chunks that are no whole rows"),
        (Moq(groups=7), 2, "chunks that are no whole rows"),
    ],
)
def test_groups_that_straddle_a_cut_are_refused(
    scheme: Scheme, tp_size: int, message: str, work: Path
) -> None:
    save("llama", work / "model", **SETTINGS)
    with pytest.raises(CannotSplitError, match=message):
        make(work / "model", work / "out", output(scheme), tp_size)
    assert {p.name for p in work.iterdir()} == {"model"}
    make(work / "model", work / "whole", output(scheme))
    with pytest.raises(CannotSplitError, match=message):
        cut(work / "whole", work / "cut", tp_size)


@pytest.mark.parametrize("tp_size,groups", [(2, (2, 4, 8, 16, 32)), (4, (4, 8, 16, 32))])
def test_the_numbers_of_groups_that_are_said_to_work_do(
    tp_size: int, groups: tuple[int, ...], work: Path
) -> None:
    """Rows are 64 and 96: their divisors in common, as far as ranks hold whole chunks."""
    save("llama", work / "model", **SETTINGS)
    with pytest.raises(CannotSplitError, match=f"`groups={', '.join(map(str, groups))}` works"):
        make(work / "model", work / "out", output(Moq(groups=128)), tp_size)
    for number in groups:
        make(work / "model", work / f"out{number}", output(Moq(groups=number)), tp_size)
