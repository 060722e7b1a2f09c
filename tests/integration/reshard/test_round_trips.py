"""Every family at every degree and every pair of degrees: cut as an oracle cuts, and merged bit by bit."""

import json
from pathlib import Path

import pytest

from fixtures.families import FAMILIES
from reshard.layout import Part, rank_units
from reshard.manifest import FILE, Manifest, decode

from .oracle import rank_shard
from .variants import VARIANTS, assert_equal, cut, load, save


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


@pytest.mark.parametrize("tp_size", [2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("width", [96, 97, 100, 101, 1024])
def test_uneven_shares_are_autotps(tp_size: int, width: int) -> None:
    """DeepSpeed's own arithmetic, in grains of one row: names with `mlp`, and names without."""
    from deepspeed.module_inject.tp_shard import AutoTPMeta, get_shard_size_list

    part = Part(name="features", units=width, sharing="uneven")
    ours = [end - begin for begin, end in (rank_units(part, tp_size, rank) for rank in range(tp_size))]
    meta = AutoTPMeta(num_kv_heads=24, num_attention_heads=24, tp_grain_size=1)
    for name in ("transformer.h.0.mlp.c_fc", "model.decoder.layers.0.fc1", "lm_head"):
        assert get_shard_size_list(width, tp_size, meta, name) == ours
