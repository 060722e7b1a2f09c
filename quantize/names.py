"""Names that a request may use. No imports: a command line shows them before anything else is loaded."""

from typing import Final

#: `zero-inference` writes a DeepSpeed configuration, the others checkpoints.
FORMAT_NAMES: Final = ("compressed-tensors", "bitsandbytes", "safetensors", "deepspeed", "zero-inference")
#: Schemes that a request may name; the others belong to one format each.
SCHEME_NAMES: Final = ("symmetric-search", "symmetric", "groups", "rows", "moq", "zero-inference")
