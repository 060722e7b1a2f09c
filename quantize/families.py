"""Special treatment of Linears by transformers in some families, which decides what can be quantized.

Source: transformers 5.23, the `modeling_*` files of these families.
"""

from typing import Final

#: By model type: the last segment of modules that transformers keeps in float32 in a float16 model.
FLOAT32: Final[dict[str, str]] = {"t5": "wo"}
#: Model types whose Linears have a class of their own, which runtimes do not replace → that class.
OWN_LINEARS: Final[dict[str, str]] = {"falcon": "FalconLinear"}
#: Model types whose initialisation reads weights of Linears, compressed or not.
LOOKS_AT_WEIGHTS: Final = ("bert", "falcon", "gpt_bigcode", "t5")
