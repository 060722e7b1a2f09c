"""Pre-shards of ours, and what is refused before DeepSpeed sees them.

Generation itself needs GPUs and an older transformers: `tests/benchmarks/kernel_injection.py`.
"""

import json
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fixtures import tiny
from reshard.errors import (
    CheckpointError,
    DamagedFileError,
    InconsistentShardsError,
    MissingFileError,
    UnsupportedTargetError,
)
from reshard.formats.deepspeed_layout import INDEX_FILE
from reshard.job import Request
from reshard.loaders.injected_blocks import check_computed, needed_shapes
from reshard.loaders.kernel_injection import load_kernel_injection
from reshard.loaders.pre_shards import check_rank, read_index
from reshard.run import reshard

FAMILIES = ("bloom", "gpt_neo", "gpt_neox", "gptj", "opt")
#: transformers 5 calls the head otherwise than the checkpoint and transformers 4.43 do.
RENAMED = {"lm_head.weight": "embed_out.weight"}


#: Families whose fixture has an MLP that the injected block cannot have.
WIDE = {
    "gpt_neox": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 128,
    },
    "opt": {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 128,
        "max_position_embeddings": 64,
    },
}


def save(family: str, folder: Path, *, seed: int = 0) -> Path:
    """A family's tiny checkpoint."""
    if family not in WIDE:
        return tiny.save(family, folder, seed=seed)
    config = transformers.AutoConfig.for_model(family, **WIDE[family])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def cut(source: Path, output: Path, *, tp_size: int = 2) -> Path:
    """Pre-shards of a checkpoint."""
    reshard(
        Request(source=str(source), output=output, degrees=(tp_size,), format="deepspeed", dtype="float16")
    )
    return output


def needed(folder: Path, tp_size: int = 2) -> dict[str, tuple[int, ...]]:
    """What each rank's files must hold, under the names that transformers 4.43 gives them."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    renamed = RENAMED if config.model_type == "gpt_neox" else {}
    return {renamed.get(name, name): shape for name, shape in needed_shapes(model, tp_size).items()}


def check(folder: Path, tp_rank: int = 0) -> None:
    """What the loader does before it hands a folder on."""
    check_rank(folder, read_index(folder), tp_rank, needed(folder), torch.float16)


def load_tensors(path: Path) -> OrderedDict[str, torch.Tensor]:
    tensors: OrderedDict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return tensors


@pytest.fixture(scope="module")
def gptj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-J's pre-shards for two ranks; tests take copies."""
    root = tmp_path_factory.mktemp("gptj")
    return cut(save("gptj", root / "checkpoint"), root / "tp2")


@pytest.fixture
def shards(gptj: Path, tmp_path: Path) -> Path:
    """A copy of GPT-J's pre-shards, to be spoilt."""
    return Path(shutil.copytree(gptj, tmp_path / "tp2"))


@pytest.mark.parametrize("family", FAMILIES)
def test_pre_shards_hold_what_the_injected_blocks_need(family: str, tmp_path: Path) -> None:
    folder = cut(save(family, tmp_path / "checkpoint"), tmp_path / "tp2")
    for tp_rank in range(2):
        check(folder, tp_rank)


def test_a_folder_of_another_degree_is_refused(shards: Path) -> None:
    with pytest.raises(InconsistentShardsError, match=r"cut for tp_size=2, but the number of processes is 1"):
        load_kernel_injection(shards, dtype=torch.float16)


def test_a_folder_of_another_dtype_is_refused(tmp_path: Path) -> None:
    folder = cut(save("bloom", tmp_path / "checkpoint"), tmp_path / "tp1", tp_size=1)
    with pytest.raises(InconsistentShardsError, match=r"written in float16, but bfloat16 was asked for"):
        load_kernel_injection(folder, dtype=torch.bfloat16)


def test_transformers_of_today_is_refused_with_what_to_install(tmp_path: Path) -> None:
    folder = cut(save("bloom", tmp_path / "checkpoint"), tmp_path / "tp1", tp_size=1)
    with pytest.raises(ImportError, match=r"install 4\.43\.4 in an environment of its own"):
        load_kernel_injection(folder, dtype=torch.float16)


@pytest.mark.parametrize("name", [INDEX_FILE, "tp_01_00.pt", "non-tp.pt"])
def test_every_rank_misses_a_missing_file(shards: Path, name: str) -> None:
    (shards / name).unlink()
    with pytest.raises(MissingFileError, match=name):
        load_kernel_injection(shards, dtype=torch.float16)


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("checkpoints", {"tp": ["../tp_00_00.pt", "tp_01_00.pt"], "non_tp": ["non-tp.pt"]}, "own folder"),
        ("checkpoints", {"tp": ["tp_00_00.pt"], "non_tp": ["non-tp.pt"]}, "lists 1 files for tp_size 2"),
        ("tp_size", 0, "for tp_size 0"),
        ("tp_size", "two", "no index of pre-shards"),
        ("type", "Megatron", "type 'Megatron'"),
        ("parallelization", "pp", "parallelization 'pp'"),
    ],
)
def test_an_index_that_deepspeed_would_misread_is_refused(
    shards: Path, key: str, value: Any, message: str
) -> None:
    index = json.loads((shards / INDEX_FILE).read_text())
    (shards / INDEX_FILE).write_text(json.dumps(index | {key: value}))
    with pytest.raises(DamagedFileError, match=message):
        read_index(shards)


def test_a_rank_does_not_take_another_ranks_file(shards: Path) -> None:
    (shards / "tp_00_00.pt").replace(shards / "tp_01_00.pt")
    shutil.copy(shards / "tp_01_00.pt", shards / "tp_00_00.pt")
    check(shards, 0)
    with pytest.raises(InconsistentShardsError, match=r"rank 0 of tp_size=2, but rank 1 of 2 would load it"):
        check(shards, 1)


def test_files_of_two_checkpoints_are_not_mixed(shards: Path, tmp_path: Path) -> None:
    other = cut(save("gptj", tmp_path / "other", seed=1), tmp_path / "other-tp2")
    shutil.copy(other / "tp_01_00.pt", shards / "tp_01_00.pt")
    check(shards, 0)
    with pytest.raises(InconsistentShardsError, match="mixes shards of several checkpoints"):
        check(shards, 1)


def test_a_key_that_is_missing_is_named(shards: Path) -> None:
    tensors = load_tensors(shards / "tp_00_00.pt")
    del tensors["transformer.h.1.mlp.inter_b"]
    torch.save(tensors, shards / "tp_00_00.pt")
    with pytest.raises(InconsistentShardsError, match=r"lacks transformer\.h\.1\.mlp\.inter_b"):
        check(shards)


def test_a_key_too_many_is_named(shards: Path) -> None:
    tensors = load_tensors(shards / "non-tp.pt")
    tensors["transformer.wpe.weight"] = torch.zeros(2, 2, dtype=torch.float16)
    torch.save(tensors, shards / "non-tp.pt")
    with pytest.raises(InconsistentShardsError, match=r"holds transformer\.wpe\.weight"):
        check(shards)


def test_a_tensor_that_is_not_cut_is_named_with_both_shapes(shards: Path) -> None:
    tensors = load_tensors(shards / "tp_00_00.pt")
    hidden = tensors["transformer.h.0.norm_w"].shape[0]
    tensors["transformer.h.0.attention.attn_ow"] = torch.zeros(hidden, hidden, dtype=torch.float16)
    torch.save(tensors, shards / "tp_00_00.pt")
    expected = rf"shape \[{hidden}, {hidden}\].*needs \[{hidden // 2}, {hidden}\]"
    with pytest.raises(InconsistentShardsError, match=expected):
        check(shards)


def test_one_tensor_of_another_dtype_is_named(shards: Path) -> None:
    tensors = load_tensors(shards / "non-tp.pt")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float()
    torch.save(tensors, shards / "non-tp.pt")
    with pytest.raises(InconsistentShardsError, match=r"lm_head\.weight in float32"):
        check(shards)


def test_a_weight_and_its_bias_in_two_files_are_refused(shards: Path) -> None:
    """As DeepSpeed's own saver leaves GPT-J: its loader then fails with the name of the weight alone."""
    whole = load_tensors(shards / "non-tp.pt")
    layers = load_tensors(shards / "tp_00_00.pt")
    layers["transformer.ln_f.bias"] = whole.pop("transformer.ln_f.bias")
    torch.save(whole, shards / "non-tp.pt")
    torch.save(layers, shards / "tp_00_00.pt")
    with pytest.raises(InconsistentShardsError, match=r"holds a bias but not transformer\.ln_f\.weight"):
        check(shards)


class Payload:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_payload_is_not_executed(shards: Path, tmp_path: Path, legacy: bool) -> None:
    touched = tmp_path / "touched"
    if legacy:
        (shards / "non-tp.pt").write_bytes(pickle.dumps(Payload(touched)))
    else:
        torch.save({"lm_head.weight": Payload(touched)}, shards / "non-tp.pt")
    with pytest.raises(DamagedFileError, match=r"non-tp\.pt is no file of tensors"):
        check(shards)
    assert not touched.exists()


def test_quantized_pre_shards_are_refused(shards: Path) -> None:
    torch.save({"lm_head.weight": [torch.zeros(2, 2, dtype=torch.int8), torch.ones(2)]}, shards / "non-tp.pt")
    with pytest.raises(DamagedFileError, match="int8 pre-shards are not loaded"):
        check(shards)


@pytest.mark.parametrize(
    "family,setting,value",
    [
        ("bloom", "apply_residual_connection_post_layernorm", True),
        ("gpt_neo", "activation_function", "relu"),
        ("gpt_neox", "use_parallel_residual", False),
        ("gpt_neox", "rotary_emb_base", 500),
        ("gpt_neox", "attention_bias", False),
        ("gptj", "activation_function", "relu"),
        ("opt", "do_layer_norm_before", False),
    ],
)
def test_a_setting_that_the_kernels_ignore_is_refused(family: str, setting: str, value: Any) -> None:
    config = transformers.AutoConfig.for_model(family)
    check_computed(config, 128)
    setattr(config, setting, value)
    with pytest.raises(UnsupportedTargetError, match=setting):
        check_computed(config, 128)


def test_local_attention_is_kept_inside_its_window() -> None:
    config = transformers.GPTNeoConfig()
    check_computed(config, config.window_size - 1)
    with pytest.raises(UnsupportedTargetError, match=f"max_out_tokens={config.window_size - 1}"):
        check_computed(config, config.window_size)


def test_a_family_without_loadable_kernels_is_refused_with_those_that_have_them() -> None:
    with pytest.raises(CheckpointError, match=r"'llama'.*bloom, gpt_neo, gpt_neox, gptj, opt"):
        check_computed(transformers.LlamaConfig(), 128)


def test_heads_that_the_degree_does_not_divide_are_refused(gptj: Path) -> None:
    with pytest.raises(UnsupportedTargetError, match="4 heads at tp_size 3"):
        needed(gptj, tp_size=3)
