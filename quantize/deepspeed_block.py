"""The `weight_quantization` block of a DeepSpeed configuration: written for chosen modules, and read. Pure.

See `quantize.deepspeed_selection` for what DeepSpeed does with it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from reshard.errors import UnsupportedTargetError

from .deepspeed_selection import Weight, check_shape
from .errors import GroupSizeError, InvalidSchemeError
from .scheme import ZeroInference


def setting_of(scheme: ZeroInference) -> dict[str, Any]:
    """A scheme in DeepSpeed's words."""
    return {
        "num_bits": scheme.bits,
        "group_size": scheme.group_size,
        "group_dim": scheme.dim,
        "symmetric": False,
    }


def scheme_of(setting: Any) -> ZeroInference:
    """A scheme from DeepSpeed's words.

    Raises:
        InvalidSchemeError: DeepSpeed stops at them.
    """
    if not isinstance(setting, Mapping):
        raise InvalidSchemeError(
            f"{setting!r} is no object with num_bits, group_size, group_dim and symmetric"
        )
    missing = [key for key in ("num_bits", "group_size", "group_dim", "symmetric") if key not in setting]
    if missing:
        raise InvalidSchemeError(f"DeepSpeed needs {', '.join(missing)}")
    if setting["symmetric"]:
        raise InvalidSchemeError("symmetric is true, and DeepSpeed quantizes asymmetrically only")
    try:
        return ZeroInference(
            bits=setting["num_bits"], group_size=setting["group_size"], dim=setting["group_dim"]
        )
    except TypeError as error:
        raise InvalidSchemeError(f"{dict(setting)!r}: {error}") from None


def post_init_quant(
    chosen: Collection[str], modules: Iterable[str], scheme: ZeroInference
) -> dict[str, dict[str, Any]]:
    """The block `post_init_quant`: keys that are contained in the names of chosen modules alone.

    Args:
        chosen: names of the modules to quantize.
        modules: names of all modules that DeepSpeed might replace.
        scheme: of every chosen module.

    Raises:
        UnsupportedTargetError: a chosen module's name is part of another's that is not chosen.
    """
    return {key: setting_of(scheme) for key in _keys(chosen, {*chosen, *modules})}


def _keys(chosen: Iterable[str], modules: Collection[str]) -> Iterator[str]:
    """The fewest parts of names: what stands behind the layer's number, where that says enough."""
    groups: dict[str, set[str]] = {}
    for module in chosen:
        groups.setdefault(_tail(module), set()).add(module)
    for tail, group in groups.items():
        if _containing(tail, modules) == group:
            yield tail
            continue
        for module in sorted(group):
            if _containing(module, modules) != {module}:
                others = ", ".join(sorted(_containing(module, modules) - {module})[:3])
                raise UnsupportedTargetError(
                    f"DeepSpeed would quantize {others} with {module}, whose name is a part of theirs; "
                    "choose all of them, or none"
                )
            yield module


def _containing(key: str, modules: Iterable[str]) -> set[str]:
    return {module for module in modules if key in module}


def _tail(module: str) -> str:
    """`.attn.q_proj` of `transformer.h.0.attn.q_proj`; all of a name without numbers."""
    segments = module.split(".")
    numbers = [index for index, segment in enumerate(segments) if segment.isdecimal()]
    return "." + ".".join(segments[numbers[-1] + 1 :]) if numbers else module


def matched(weights: Iterable[Weight], block: Mapping[str, Any]) -> dict[str, ZeroInference]:
    """What DeepSpeed quantizes by a given `post_init_quant`: module → scheme.

    Args:
        weights: all of a model in float16.
        block: key → setting.

    Raises:
        InvalidSchemeError: a setting that DeepSpeed stops at.
        UnsupportedTargetError: a module whose name contains two keys, or whose weight is float32.
        GroupSizeError: groups do not tile a weight.
    """
    schemes: dict[str, ZeroInference] = {}
    for weight in weights:
        keys = [key for key in block if key in weight.module] if weight.is_replaced else []
        if not keys:
            continue
        if len(keys) > 1:
            raise UnsupportedTargetError(
                f"{weight.module} contains two keys, {keys[0]!r} and {keys[1]!r}; DeepSpeed stops there"
            )
        if weight.is_float32:
            raise UnsupportedTargetError(
                f"{weight.name}: transformers keeps it in float32, and DeepSpeed quantizes float16 only"
            )
        schemes[weight.module] = _checked(weight, block[keys[0]], f"{keys[0]!r}: ", 2)
    return schemes


def initialized(
    weights: Iterable[Weight], setting: Mapping[str, Any], *, itemsize_bytes: int
) -> dict[str, ZeroInference]:
    """What DeepSpeed quantizes by a given `quantized_initialization`: module → scheme.

    Args:
        weights: all of a model.
        setting: the block.
        itemsize_bytes: of the model's dtype.

    Raises:
        InvalidSchemeError: a setting that DeepSpeed stops at.
        GroupSizeError: groups do not tile a weight.
    """
    return {
        weight.module: _checked(weight, setting, "", itemsize_bytes)
        for weight in weights
        if weight.is_replaced
    }


def _checked(weight: Weight, setting: Any, where: str, itemsize_bytes: int) -> ZeroInference:
    try:
        scheme = scheme_of(setting)
    except InvalidSchemeError as error:
        raise InvalidSchemeError(f"{where}{error}") from None
    try:
        check_shape(weight.shape, scheme, itemsize_bytes=itemsize_bytes)
    except GroupSizeError as error:
        raise GroupSizeError(f"{weight.name}: {error}") from None
    return scheme
