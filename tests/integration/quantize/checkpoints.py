"""Checkpoints that the tests here quantize, and what is in them."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from fixtures.train import TRAINED
from quantize.convert import quantize
from quantize.formats.base import Output
from reshard.job import Request


def quantized_copy(folder: Path, output: Output) -> Path:
    """The trained model, quantized into `folder`."""
    return quantize(Request(source=str(TRAINED), output=folder, degrees=(1,), jobs=2), output).output


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the safetensors files in `folder`."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def wide_model(folder: Path, layers: int) -> Path:
    """A GPT-J of 4 MiB matrices; the trained model lends its configuration."""
    config = json.loads((TRAINED / "config.json").read_bytes())
    width = 1448  # 181 heads of 8
    config |= {"n_embd": width, "n_inner": width, "n_layer": layers, "n_head": 181, "rotary_dim": 8}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    matrix = np.random.default_rng(0).standard_normal((width, width)).astype(np.float16)
    vector = np.ones(width, np.float16)
    tensors = {"transformer.wte.weight": np.ones((config["vocab_size"], width), np.float16)}
    tensors |= {f"transformer.ln_f.{part}": vector for part in ("weight", "bias")}
    tensors |= {"lm_head.weight": tensors["transformer.wte.weight"]}
    tensors |= {"lm_head.bias": np.ones(config["vocab_size"], np.float16)}
    for layer in range(layers):
        block = f"transformer.h.{layer}"
        linears = (*(f"attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc_in", "mlp.fc_out")
        tensors |= {f"{block}.{name}.weight": matrix for name in linears}
        tensors |= {f"{block}.mlp.{name}.bias": vector for name in ("fc_in", "fc_out")}
        tensors |= {f"{block}.ln_1.{part}": vector for part in ("weight", "bias")}
    save_file(tensors, folder / "model.safetensors")
    return folder
