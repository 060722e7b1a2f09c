"""One rank that hands int8 pre-shards to DeepSpeed's own injection and loader, and saves what they made.

Usage: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment; `deepspeed_int8_rank.py JOBS RESULTS`.
A job is a name and a folder. The answer is what was loaded by name, int8 with its scales, or an error.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
import transformers
from deepspeed.inference.config import DeepSpeedInferenceConfig
from deepspeed.module_inject.replace_module import replace_transformer_layer
from deepspeed.ops.transformer.inference.op_binding.base import BaseOp


def load(folder: Path, world_size: int) -> dict[str, Any]:
    """What `init_inference` does with a model of meta tensors once it has not refused its dtype."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config).half()
    settings = DeepSpeedInferenceConfig(
        dtype=torch.int8,
        replace_with_kernel_inject=True,
        base_dir=str(folder),
        tensor_parallel={
            "tp_size": world_size,
            "mpu": None,
            "tp_group": torch.distributed.new_group(range(world_size)),
        },
    )
    index = json.loads((folder / "ds_inference_config.json").read_text())
    loaded = replace_transformer_layer(None, model, index, settings, config)
    found: dict[str, Any] = {}
    for name, parameter in loaded.named_parameters():
        data = parameter.detach().clone()
        found[name] = [data, parameter.scale.clone()] if hasattr(parameter, "scale") else data
    return found


def refusal(folder: Path) -> str:
    """What `init_inference` says of int8."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config).half()
    try:
        deepspeed.init_inference(
            model,
            dtype=torch.int8,
            replace_with_kernel_inject=True,
            checkpoint=str(folder / "ds_inference_config.json"),
        )
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    """Load every folder."""
    jobs, results = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    # Blocks ask for their CUDA kernels when they are made; without a GPU there are none, and none is called.
    BaseOp.inference_module = SimpleNamespace()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    for name, folder in jobs.items():
        try:
            answer: dict[str, Any] = {"loaded": load(Path(folder), world_size)}
        # What DeepSpeed raises is what the test wants to know.
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        answer["refusal"] = refusal(Path(folder))
        torch.save(answer, results / f"{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
