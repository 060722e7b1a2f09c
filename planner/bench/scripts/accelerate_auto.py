"""What `from_pretrained(device_map="auto")` makes of the machine.

Needs torch, transformers and accelerate.
"""

import os
from typing import Any

# Who has no plan sets nothing up, so allocators are as they come; `generation` would change them.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "")
# glibc has read this when the process began; `generation` takes it for a user's wish.
os.environ.setdefault("MALLOC_MMAP_MAX_", "65536")

from generation import DTYPE, auto_class, main

# isort: split
import torch

#: Of a GPU's free memory, what transformers takes by itself; a cap hides behind the driver's figure.
_SHARE = 0.9


def load(checkpoint: str, offload_folder: str) -> Any:
    """Nothing is said about the map but, under a cap, how large the GPUs are."""
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
