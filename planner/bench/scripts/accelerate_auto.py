"""Runs a model with `from_pretrained(device_map="auto")`.

Needs torch, transformers and accelerate.
"""

import os
from typing import Any

# A baseline uses the allocators' defaults; `generation` would configure them otherwise.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "")
# glibc has read this at the start of the process; `generation` keeps a value that is already set.
os.environ.setdefault("MALLOC_MMAP_MAX_", "65536")

from generation import DTYPE, auto_class, main

# isort: split
import torch

#: Share of a GPU's free memory that transformers uses by default. With a memory cap it must be given
#: explicitly, because transformers reads the free memory from the driver, which does not know the cap.
_SHARE = 0.9


def load(checkpoint: str, offload_folder: str) -> Any:
    """Load the model with the automatic device map; a memory cap is passed as `max_memory`."""
    cap = int(os.environ.get("GPU_MEMORY_CAP_BYTES", "0"))
    limits: dict[str, Any] = {}
    if cap and torch.cuda.is_available():
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        gpus = dict.fromkeys(range(torch.cuda.device_count()), int(_SHARE * cap))
        limits = {"max_memory": {**gpus, "cpu": int(_SHARE * host)}}
    model = auto_class().from_pretrained(
        checkpoint, dtype=DTYPE, device_map="auto", offload_folder=offload_folder, **limits
    )
    return model.eval()


if __name__ == "__main__":
    main(load, __doc__)
