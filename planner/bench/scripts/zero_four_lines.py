"""Runs ZeRO-Inference as in its announcement: stage 3, weights in pinned host memory, default settings.

Needs torch, transformers and deepspeed.
"""

import atexit
import json
import os
import socket
from typing import Any

# A baseline uses the allocator's defaults; `generation` would configure it otherwise.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "")

from generation import DTYPE, FOLDER, ON_CPU, auto_class, main

# isort: split
import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu" if ON_CPU else "cuda")


def load(checkpoint: str, offload_folder: str) -> Any:
    """Load the model partitioned, directly into host memory."""
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    _join()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if ON_CPU else "nccl", verbose=False)
    atexit.register(_leave)
    config = json.loads((FOLDER / "ds_config.json").read_text())
    # As long as this object exists, models are created with partitioned parameters.
    scope = HfDeepSpeedConfig(config)
    model = auto_class().from_pretrained(checkpoint, dtype=DTYPE)
    module = deepspeed.initialize(model=model, config=config)[0].module.eval()
    module.deepspeed_scope = scope
    return module


def _join() -> None:
    """Set up the environment of a process group; a process that no launcher started is a group of one."""
    if "RANK" in os.environ:
        return
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = str(held.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    os.environ.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(load, __doc__)
