"""`reshard --roles`: cut by index sets, in any order of degrees, and put together again bit by bit."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import torch
from safetensors.torch import save_file

from reshard import roles as roles_files
from reshard.errors import (
    CannotSplitError,
    CheckpointError,
    InconsistentShardsError,
    MissingFileError,
    UnsupportedSourceError,
    UnsupportedTargetError,
)
from reshard.formats.per_rank import POLICY, ways_to_cut
from reshard.job import open_source
from reshard.layout import joined, rank_intervals
from reshard.loaders.rank_files import find_rank_files
from reshard.manifest import FILE, decode
from reshard.roles import Roles, WeightRoles
from reshard.verification import verify

from .reshard_roles_cases import CASES, build, oracle, owners, per_head, write
from .variants import INTERMEDIATE, VARIANTS, Variant, assert_equal, cut, load, save

#: Degrees that share out the tables' groups.
_DEGREES: Final = (2, 3, 4)
_GROUPS: Final = 12
#: Its forward joins heads of four blocks, so a rank's rows are not in the order of the whole tensor.
_NOT_ASCENDING: Final = ("codegen",)


@pytest.mark.parametrize("name", CASES)
def test_cut_as_numpy_cuts_recut_and_merged(name: str, work: Path) -> None:
    settings, roles = CASES[name]
    original = build(name, work / "hf", **settings)
    file = write(roles, work / "roles.json")
    cut(work / "hf", work / "cut", *_DEGREES, roles=file)
    for tp_size in _DEGREES:
        folder = work / "cut" / f"tp{tp_size}"
        for rank in range(tp_size):
            found = load(folder, f"model-rank-{rank:02d}-of-{tp_size:02d}*")
            assert_equal(found, oracle(roles, original, tp_size, rank), f"tp{tp_size} rank {rank}")
            assert sum(found[n].shape != original[n].shape for n in found) == sum(
                owners(roles, n, original[n].shape[0]) is not None for n in found
            )
        whole = decode((folder / FILE).read_bytes(), FILE)
        assert whole.roles == roles_files.digest(roles)
        assert roles_files.read(folder / roles_files.FILE) == roles
        assert verify(str(folder), str(work / "hf")).tensors == len(original)
    for tp_size, other in ((2, 3), (3, 4), (4, 2)):
        # The roles go with the shards: nobody gives them again.
        cut(work / "cut" / f"tp{tp_size}", work / f"again{tp_size}", other)
        for shard in (work / "cut" / f"tp{other}").glob("*.safetensors"):
            assert_equal(load(work / f"again{tp_size}", shard.name), load(shard.parent, shard.name))
        merged = work / f"merged{tp_size}"
        cut(work / "cut" / f"tp{tp_size}", merged, 1, format="huggingface")
        assert_equal(load(merged), original)
        assert not (merged / roles_files.FILE).exists()


def _tabled(variant: Variant, folder: Path) -> Roles:
    """The family's table as roles: one group for every twelfth of its units, or for each of two key heads."""
    source = open_source(str(folder))
    names = {}
    # Twelve ranks would hold copies of two key heads, which is no partition.
    num_groups = 2 if variant.kv_heads == 2 else _GROUPS
    for name, way in ways_to_cut(source, POLICY, num_groups).items():
        if way is not None:
            shares = [rank_intervals(way.axis, num_groups, rank) for rank in range(num_groups)]
            names[name] = WeightRoles(dim=way.dim, groups=tuple(_without_common(shares)))
    source.folder.close()
    biases = (f"{name.removesuffix('.weight')}.bias" for name in names if name.endswith(".weight"))
    once = tuple(b for b in biases if b in source.tensors and b not in names)
    return Roles(model_type=source.model.model_type, weights=names, bias_once=once)


def _without_common(shares: list[tuple[tuple[int, int], ...]]) -> Iterator[tuple[tuple[int, int], ...]]:
    """What all ranks hold is in no group."""
    held = [{i for begin, end in share for i in range(begin, end)} for share in shares]
    common = set.intersection(*held)
    for indices in held:
        yield tuple(joined((i, i + 1) for i in sorted(indices - common)))


@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in _NOT_ASCENDING])
def test_equal_to_the_cut_by_the_familys_table(name: str, work: Path) -> None:
    variant = VARIANTS[name]
    # Twelfths of every extent.
    even = {INTERMEDIATE: 96, 20: 24} | ({32: 48} if name == "opt-projected" else {})
    settings = {k: even.get(v, v) if isinstance(v, int) else v for k, v in variant.settings.items()}
    if name == "opt-projected":
        settings["word_embed_proj_dim"] = 48
    save(variant._replace(settings=settings), work / "hf")
    roles = _tabled(variant, work / "hf")
    num_groups = len(next(iter(roles.weights.values())).groups)
    degrees = tuple(d for d in _DEGREES if num_groups % d == 0)
    assert degrees == ((2,) if variant.kv_heads == 2 else _DEGREES)
    for target, options in (("table", {}), ("roles", {"roles": write(roles, work / "roles.json")})):
        cut(work / "hf", work / target, 1, *degrees, **options)
    shards = sorted((work / "table").glob("*/*.safetensors"))
    assert len(shards) == 1 + sum(degrees)
    for shard in shards:
        twin = work / "roles" / shard.parent.name
        assert_equal(load(twin, shard.name), load(shard.parent, shard.name), str(shard))
        # One model has one digest however it was cut.
        ours, theirs = (decode((folder / FILE).read_bytes(), FILE) for folder in (twin, shard.parent))
        assert (ours.origin, ours.tensors) == (theirs.origin, theirs.tensors)
        assert theirs.roles is None


@pytest.fixture
def cohere(tmp_path: Path) -> Path:
    settings, roles = CASES["cohere"]
    build("cohere", tmp_path / "hf", **settings)
    write(roles, tmp_path / "roles.json")
    return tmp_path


def _is_untouched(folder: Path) -> bool:
    return sorted(p.name for p in folder.iterdir()) == ["hf", "roles.json"]


@pytest.mark.parametrize("target", ["deepspeed", "transformers", "vllm", "megatron", "huggingface"])
def test_formats_with_rules_of_their_own_refuse(target: str, cohere: Path) -> None:
    says = f"`roles`: {target} is cut by .*; formats that take roles: safetensors"
    with pytest.raises(UnsupportedTargetError, match=says):
        cut(cohere / "hf", cohere / "out", 1, format=target, roles=cohere / "roles.json")
    assert _is_untouched(cohere)


def test_roles_of_other_extents_or_degrees_are_refused_before_anything_is_written(cohere: Path) -> None:
    roles = CASES["cohere"][1]
    says = r"in (12|36) groups.* over tp_size=5; degrees that work: 1, 2, 3, 4, 6, 12$"
    with pytest.raises(CannotSplitError, match=says):
        cut(cohere / "hf", cohere / "out", 2, 5, roles=cohere / "roles.json")
    wide = Roles(
        model_type="cohere",
        weights=roles.weights | {"model.layers.*.mlp.up_proj.weight": per_head(40, 1, 0)},
    )
    write(wide, cohere / "roles.json")
    with pytest.raises(CannotSplitError, match=r"mlp\.up_proj\.weight the interval \[36, 37\), and dim"):
        cut(cohere / "hf", cohere / "out", 2, roles=cohere / "roles.json")
    assert _is_untouched(cohere)


def test_a_set_without_its_roles_or_with_other_ones_is_refused(cohere: Path) -> None:
    cut(cohere / "hf", cohere / "cut", 2, roles=cohere / "roles.json")
    ours = cohere / "cut" / roles_files.FILE
    held = ours.read_bytes()
    ours.unlink()
    with pytest.raises(MissingFileError, match="by which the shards beside it were cut; fetch it"):
        cut(cohere / "cut", cohere / "again", 4)
    fewer = dict(list(CASES["cohere"][1].weights.items())[1:])
    write(Roles(model_type="cohere", weights=fewer), ours)
    with pytest.raises(InconsistentShardsError, match="is not the file by which the shards"):
        cut(cohere / "cut", cohere / "again", 4)
    # However it is laid out, it says the same.
    ours.write_text(json.dumps(json.loads(held), indent=8))
    cut(cohere / "cut", cohere / "again", 4)
    assert (cohere / "again" / roles_files.FILE).read_bytes() == held


def test_shards_cut_by_different_roles_are_not_mixed(cohere: Path) -> None:
    cut(cohere / "hf", cohere / "one", 2, roles=cohere / "roles.json")
    weights = dict(CASES["cohere"][1].weights)
    weights = {n: w for n, w in weights.items() if "mlp" in n}
    write(Roles(model_type="cohere", weights=weights), cohere / "roles.json")
    cut(cohere / "hf", cohere / "two", 2, roles=cohere / "roles.json")
    name = "model-rank-01-of-02.safetensors"
    shutil.copy(cohere / "two" / name, cohere / "one" / name)
    with pytest.raises(
        InconsistentShardsError, match=f"{name} is of another checkpoint than .*: its roles is"
    ):
        cut(cohere / "one", cohere / "out", 4)


def test_deepspeeds_loader_refuses_a_set_cut_by_roles(cohere: Path) -> None:
    cut(cohere / "hf", cohere / "cut", 2, roles=cohere / "roles.json")
    with pytest.raises(UnsupportedSourceError, match="is cut by a roles file, and DeepSpeed cuts by"):
        find_rank_files(cohere / "cut", 0, 2)


def test_a_quantized_checkpoint_is_refused(cohere: Path) -> None:
    tensors = load(cohere / "hf")
    key = "model.layers.0.self_attn.q_proj.weight_scale"
    save_file(tensors | {key: torch.ones(96, 1)}, cohere / "hf" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="the checkpoint is quantized, and roles do not"):
        cut(cohere / "hf", cohere / "out", 2, roles=cohere / "roles.json")
