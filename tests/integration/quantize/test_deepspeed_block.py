"""What this package says of a `weight_quantization` block is what DeepSpeed itself does with it."""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures import tiny
from quantize.deepspeed_block import initialized, matched, setting_of
from quantize.deepspeed_selection import Weight, packed_elements
from quantize.errors import GroupSizeError
from quantize.scheme import ZeroInference
from reshard.errors import UnsupportedTargetError

ROOT = Path(__file__).resolve().parents[3]
BY_OUTPUT = ZeroInference(bits=4, group_size=8, dim=0)
BY_INPUT = ZeroInference(bits=8, group_size=16, dim=1)

#: Family → keys: some match Linears, some Embeddings, some nothing, and some classes that are never replaced.
BLOCKS = {
    "opt": {"fc": BY_OUTPUT, "self_attn.": BY_INPUT, "embed_tokens": BY_INPUT, "embed_positions": BY_OUTPUT},
    "mixtral": {"self_attn": BY_OUTPUT, "experts": BY_INPUT, "gate": BY_INPUT, "lm_head": BY_INPUT},
    "falcon-grouped": {"mlp": BY_OUTPUT, "word_embeddings": BY_OUTPUT},
    "gpt2": {"c_fc": BY_OUTPUT, "wte": BY_INPUT},
    "bloom": {"nowhere": BY_OUTPUT},
}


def weights_of(model: Any) -> list[Weight]:
    return [
        Weight(
            module=module_name,
            class_name=type(module).__name__,
            parameter=name,
            shape=tuple(parameter.shape),
            model_type=model.config.model_type,
        )
        for module_name, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]


def quantized(model: Any, block: dict[str, Any]) -> Any:
    """The model as DeepSpeed leaves it."""
    from deepspeed.inference.quantization.quantization import _init_group_wise_weight_quantization

    return _init_group_wise_weight_quantization(model, {"weight_quantization": {"post_init_quant": block}})


@pytest.mark.parametrize("family", BLOCKS)
def test_keys_reach_what_deepspeed_replaces_and_it_is_as_large(family: str) -> None:
    model = tiny.build(family).half()
    weights = weights_of(model)
    block = {key: setting_of(scheme) for key, scheme in BLOCKS[family].items()}
    schemes = matched(weights, block)
    shapes = {weight.module: weight.shape for weight in weights if weight.parameter == "weight"}
    made = dict(quantized(model, block).named_modules())
    replaced = {name for name, module in made.items() if type(module).__name__.startswith("Quantized")}
    assert set(schemes) == replaced
    assert replaced or family == "bloom"
    for name, scheme in schemes.items():
        assert made[name].weight.numel() == packed_elements(shapes[name], scheme), name
        assert made[name].weight.dtype == torch.float16


@pytest.mark.parametrize(
    "block, error",
    [
        ({"fc": setting_of(BY_OUTPUT), "fc1": setting_of(BY_OUTPUT)}, UnsupportedTargetError),
        ({"fc": setting_of(BY_OUTPUT) | {"group_size": 7}}, GroupSizeError),
    ],
)
def test_where_deepspeed_stops_it_is_refused(block: dict[str, Any], error: type[Exception]) -> None:
    model = tiny.build("opt").half()
    with pytest.raises(error):
        matched(weights_of(model), block)
    with pytest.raises(AssertionError):
        quantized(copy.deepcopy(model), block)


@pytest.mark.parametrize("scheme", [BY_OUTPUT, ZeroInference(bits=8, group_size=4, dim=1)])
def test_initialization_quantizes_every_linear_and_embedding(scheme: ZeroInference, tmp_path: Path) -> None:
    model = tiny.build("llama").bfloat16()
    model.save_pretrained(tmp_path / "llama")
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
        "weight_quantization": {"quantized_initialization": setting_of(scheme)},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = run_rank(tmp_path / "llama", tmp_path / "config.json", tmp_path / "out.json")
    weights = weights_of(model)
    schemes = initialized(weights, setting_of(scheme), itemsize_bytes=2)
    assert schemes
    for weight in weights:
        numel = torch.Size(weight.shape).numel()
        held = packed_elements(weight.shape, scheme) if weight.module in schemes else numel
        assert answer["parameters"][weight.name] == [held, weight.module in schemes], weight.name
    # Decoded, it computes the same but for the errors of quantization.
    assert 0.0 < answer["error"] < 0.3 * answer["largest"]


def run_rank(checkpoint: Path, config: Path, out: Path) -> dict[str, Any]:
    script = ROOT / "tests/integration/quantize/quantized_initialization_rank.py"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "1", "LOCAL_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}
    shared |= {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    ran = subprocess.run(
        [sys.executable, str(script), str(checkpoint), str(config), str(out)],
        env=os.environ | shared,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert out.exists(), ran.stderr[-3000:]
    answer: dict[str, Any] = json.loads(out.read_text())
    return answer
