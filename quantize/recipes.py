"""Which quantization recipes can be decoded; an unknown one is an error that names what is unknown.

Source: compressed-tensors 0.20, `quantization/quant_args.py`; transformers 5.23, `BitsAndBytesConfig`.
"""

from collections.abc import Mapping
from typing import Any, Final

from reshard.cuts import CHUNKS
from reshard.errors import UnsupportedSourceError
from reshard.formats.base import Source

from .formats.plain import METHOD

#: What stands beside codes, and goes when they are decoded.
COMPANIONS: Final = (
    "weight_scale", "weight_minimum", "weight_shape", "SCB", "weight_format",
    "input_scale", "input_zero_point", CHUNKS,
)  # fmt: skip
#: Parameters of a module that decoding understands, or passes on as they are.
_KNOWN: Final = (*COMPANIONS, "weight", "bias", "weight_packed")
#: What compressed-tensors may say of weights, and what is decoded here.
_DECODED: Final[dict[str, tuple[Any, ...]]] = {
    "type": ("int", None),
    "num_bits": (8, 4),
    "symmetric": (True, None),
    "strategy": ("channel", "group", None),
    "actorder": (None,),
}
_FORMATS: Final = ("pack-quantized", "int-quantized")


def check_recipe(source: Source, recipe: Mapping[str, Any]) -> None:
    """Check that everything in the recipe and the tensors can be decoded.

    Args:
        source: the quantized checkpoint.
        recipe: its `quantization_config`.

    Raises:
        UnsupportedSourceError: something cannot; the message names it.
    """
    method, folder = recipe.get("quant_method"), source.folder.path("")
    if method not in ("compressed-tensors", "bitsandbytes", METHOD):
        raise UnsupportedSourceError(f"{folder} is quantized by {method!r}, which is not known")
    if method == "bitsandbytes" and recipe.get("load_in_4bit"):
        raise UnsupportedSourceError(f"{folder} is quantized to 4 bits by bitsandbytes; only int8 is decoded")
    if method == "compressed-tensors":
        _check_compressed(folder, recipe)
    for name in source.tensors:
        module, _, param = name.rpartition(".")
        is_coded = f"{module}.weight_scale" in source.tensors or f"{module}.SCB" in source.tensors
        if is_coded and param not in _KNOWN:
            raise UnsupportedSourceError(
                f"{name}: how a {param} changes what codes mean is not known; known are {', '.join(_KNOWN)}"
            )


def _check_compressed(folder: str, recipe: Mapping[str, Any]) -> None:
    form = recipe.get("format")
    if form not in _FORMATS:
        raise UnsupportedSourceError(
            f"{folder} has compressed-tensors' format {form!r}; {' and '.join(_FORMATS)} are decoded"
        )
    groups = recipe.get("config_groups")
    for name, group in groups.items() if isinstance(groups, dict) else ():
        weights = (group.get("weights") if isinstance(group, dict) else None) or {}
        for key, decoded in _DECODED.items():
            if weights.get(key) not in decoded:
                raise UnsupportedSourceError(
                    f"{folder}: {name} of the recipe has {key} {weights.get(key)!r} for weights; decoded is "
                    f"{' or '.join(repr(d) for d in decoded if d is not None) or 'none'}"
                )
