"""Everything on one device, the first GPU or the CPU, by transformers alone.

Needs torch and transformers.
"""

from typing import Any

from generation import DEVICE, DTYPE, auto_class, main


def load(checkpoint: str, offload_folder: str) -> Any:
    """The whole model, then moved."""
    return auto_class().from_pretrained(checkpoint, dtype=DTYPE).to(DEVICE).eval()


if __name__ == "__main__":
    main(load, __doc__)
