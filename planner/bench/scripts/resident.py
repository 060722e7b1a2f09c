"""Runs a model on one device, the first GPU or the CPU, with transformers alone.

Needs torch and transformers.
"""

import os
from typing import Any

# A baseline uses the allocators' defaults; `generation` would configure them otherwise.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "")
# glibc has read this at the start of the process; `generation` keeps a value that is already set.
os.environ.setdefault("MALLOC_MMAP_MAX_", "65536")

from generation import DEVICE, DTYPE, auto_class, main


def load(checkpoint: str, offload_folder: str) -> Any:
    """Load the whole model, then move it to the device."""
    return auto_class().from_pretrained(checkpoint, dtype=DTYPE).to(DEVICE).eval()


if __name__ == "__main__":
    main(load, __doc__)
