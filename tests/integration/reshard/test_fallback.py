"""Families without a table are cut by transformers' own plan where that is plain, and else refused."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from reshard.errors import CannotSplitError, UnknownArchitectureError
from reshard.job import Request
from reshard.run import reshard
from reshard.verification import verify

_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 264,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _save(model_type: str, folder: Path) -> Path:
    default = transformers.AutoConfig.for_model(model_type)
    config = type(default)(**_SMALL)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", ["granite", "starcoder2", "nemotron"])
@pytest.mark.parametrize("target", ["safetensors", "transformers"])
def test_a_plain_plan_is_followed(tmp_path: Path, model_type: str, target: str) -> None:
    source = _save(model_type, tmp_path / "source")
    reshard(Request(source=str(source), output=tmp_path / "cut", degrees=(2,), format=target))
    assert verify(str(tmp_path / "cut"), str(source)).tp_size == 2
    files = sorted((tmp_path / "cut").glob("*.safetensors"))
    whole, ranks = load_file(source / "model.safetensors"), [load_file(f) for f in files]
    for name, dim in (("q_proj", 0), ("v_proj", 0), ("o_proj", 1)):
        key = f"model.layers.1.self_attn.{name}.weight"
        assert torch.equal(torch.cat([rank[key] for rank in ranks], dim), whole[key])
        assert ranks[0][key].shape[dim] * 2 == whole[key].shape[dim]


def test_heads_are_not_cut(tmp_path: Path) -> None:
    source = _save("granite", tmp_path / "source")
    with pytest.raises(CannotSplitError, match="4 query and 2 key/value heads; degrees that work: 1, 2, 4"):
        reshard(Request(source=str(source), output=tmp_path / "cut", degrees=(3,)))


@pytest.mark.parametrize("model_type", ["glm4", "gpt_oss"])
def test_other_families_are_refused_with_the_file_to_add(tmp_path: Path, model_type: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    config = transformers.AutoConfig.for_model(model_type)
    config.save_pretrained(source)
    save_file({"model.embed_tokens.weight": torch.zeros(4, 4)}, source / "model.safetensors")
    with pytest.raises(UnknownArchitectureError, match=f"add reshard/architectures/{model_type}.toml"):
        reshard(Request(source=str(source), output=tmp_path / "cut", degrees=(2,)))
    assert not (tmp_path / "cut").exists()
