"""The packages that DeepSpeed's kernels run beside. Servers of such plans take the same two pins from here.

Every family gave the plain model's tokens with them (tests/benchmarks/results/). The blocks take the
arguments that models of transformers 4.43 give theirs; tokenizers and huggingface_hub follow from it. numpy 2
came after it.
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
