"""Everything on one device, the first GPU or the CPU, by transformers alone.

Needs torch and transformers.
"""

import os
from typing import Any

# Who has no plan sets nothing up, so allocators are as they come; `generation` would change them.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "")
# glibc has read this when the process began; `generation` takes it for a user's wish.
os.environ.setdefault("MALLOC_MMAP_MAX_", "65536")

from generation import DEVICE, DTYPE, auto_class, main


def load(checkpoint: str, offload_folder: str) -> Any:
    """The whole model, then moved."""
    return auto_class().from_pretrained(checkpoint, dtype=DTYPE).to(DEVICE).eval()


if __name__ == "__main__":
    main(load, __doc__)
