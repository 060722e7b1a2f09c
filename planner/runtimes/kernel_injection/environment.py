"""Versions of packages that DeepSpeed's kernels are compatible with; servers of such plans use them too.

Every model type gave the plain model's tokens with them (tests/benchmarks/results/). The blocks accept the
arguments that models of transformers 4.43 pass to their blocks, which determines tokenizers and
huggingface_hub. That release does not support numpy 2.
"""

from typing import Final

TRANSFORMERS: Final = "transformers==4.43.4"
DEEPSPEED: Final = "deepspeed==0.19.8"
REQUIREMENTS: Final = (
    TRANSFORMERS,
    "tokenizers==0.19.1",
    "huggingface_hub<1",
    "numpy<2",
    DEEPSPEED,
    "torch>=2.11,<2.12",
    "accelerate>=1.15,<1.16",
    "safetensors",
)
