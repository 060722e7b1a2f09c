"""Every family at every degree and every pair of degrees: cut as an oracle cuts, and merged bit by bit."""

import json
from pathlib import Path

import pytest

from fixtures.families import FAMILIES
from reshard.manifest import FILE, Manifest, decode

from .variants import VARIANTS, assert_equal, cut, load, rank_shard, save


def manifest(folder: Path) -> Manifest:
    return decode((folder / FILE).read_bytes(), FILE)


def test_every_family_of_the_fixtures_is_here() -> None:
    assert {variant.family for variant in VARIANTS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", VARIANTS)
def test_cut_recut_and_merged(name: str, work: Path) -> None:
    variant = VARIANTS[name]
    original = save(variant, work / "hf")
    direct = work / "cut"
    cut(work / "hf", direct, *variant.degrees)
    for tp_size in variant.degrees:
        for rank in range(tp_size):
            found = load(direct / f"tp{tp_size}", f"model-rank-{rank:02d}-of-{tp_size:02d}*")
            assert_equal(found, rank_shard(variant, original, tp_size, rank), f"tp{tp_size} rank {rank}")
    for tp_size in variant.degrees:
        source = direct / f"tp{tp_size}"
        again = work / f"from{tp_size}"
        cut(source, again, *variant.degrees)
        for other in variant.degrees:
            for file in sorted((direct / f"tp{other}").glob("*.safetensors")):
                twin = again / f"tp{other}" / file.name
                assert_equal(load(twin.parent, twin.name), load(file.parent, file.name), f"{tp_size}→{other}")
            # One model has one digest at every degree.
            assert manifest(again / f"tp{other}").tensors == manifest(direct / f"tp{other}").tensors
            assert manifest(again / f"tp{other}").origin.sha256 == manifest(source).origin.sha256
        merged = work / f"merged{tp_size}"
        cut(source, merged, 1, format="huggingface")
        assert_equal(load(merged), original, f"merged from {tp_size}")
        assert json.loads((merged / "config.json").read_text()) == json.loads(
            (work / "hf" / "config.json").read_text()
        )
