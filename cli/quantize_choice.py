"""From the options of `quantize` to a scheme and a format."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from quantize.formats.base import Output
    from quantize.scheme import Scheme
    from reshard.formats.base import Source

SCHEMES: Final = ("symmetric-search", "symmetric", "groups", "rows", "moq", "zero-inference")
FORMATS: Final = ("compressed-tensors", "bitsandbytes", "safetensors", "deepspeed", "zero-inference")

Options = dict[str, Any]


def choose_format(options: Options) -> str:
    """The format asked for, or the one that suits the scheme."""
    if options["format_name"] is not None:
        return str(options["format_name"])
    is_packed = options["scheme"] in (None, "symmetric", "symmetric-search")
    return "compressed-tensors" if is_packed else "safetensors"


def choose_scheme(options: Options) -> "Scheme":
    """The scheme asked for; a usage error where settings do not belong to it."""
    from quantize.deepspeed_selection import GROUP_DIM
    from quantize.scheme import SCHEMES as KINDS

    implied = {"zero-inference": "zero-inference", "deepspeed": "rows"}.get(options["format_name"] or "")
    name = options["scheme"] or implied or "symmetric-search"
    settings: Options = {"bits": int(options["bits"])}
    size = options["group_size"]
    if name == "moq":
        settings |= {"groups": options["groups"] or 64, "mlp_extra_grouping": options["mlp_extra_grouping"]}
    elif options["groups"] or options["mlp_extra_grouping"]:
        raise click.UsageError("--groups and --mlp-extra-grouping belong to --scheme moq.")
    if size is not None:
        if name in ("moq", "rows"):
            raise click.UsageError(f"--group-size does not belong to --scheme {name}.")
        if size == 0 and name == "zero-inference":
            raise click.UsageError("--scheme zero-inference needs a number of weights per group.")
        settings["group_size"] = size or None
    elif options["activations"] and name in ("symmetric", "symmetric-search"):
        # Activations are multiplied with whole rows.
        settings["group_size"] = None
    if name == "zero-inference" and options["format_name"] == "zero-inference":
        settings["dim"] = GROUP_DIM
    if options["group_dim"] is not None:
        if name != "zero-inference":
            raise click.UsageError("--group-dim belongs to --scheme zero-inference.")
        settings["dim"] = int(options["group_dim"])
    return KINDS[name](**settings)


def choose_output(name: str, scheme: "Scheme", options: Options, source: "Callable[[], Source]") -> "Output":
    """The format called `name` for the scheme; a usage error where they do not go together."""
    allowed = options["allow_nonfinite"]
    if options["activations"] and name != "compressed-tensors":
        raise click.UsageError("--activations belongs to --format compressed-tensors.")
    if options["tp"] and name not in ("safetensors", "deepspeed"):
        raise click.UsageError("--tp belongs to --format safetensors and deepspeed; cut others with reshard.")
    if name == "safetensors":
        from quantize.formats import plain

        return plain.output(scheme, allow_nonfinite=allowed)
    if name in ("bitsandbytes", "deepspeed"):
        return _one_scheme(name, options, source)
    from quantize.formats import compressed_tensors

    if scheme.name not in ("symmetric", "symmetric-search"):
        raise click.UsageError(f"--scheme {scheme.name} has no place in compressed-tensors.")
    return compressed_tensors.output(
        bits=scheme.bits,
        group_size=getattr(scheme, "group_size", None),
        scales="search" if scheme.name == "symmetric-search" else "absmax",
        activations=options["activations"],
        allow_nonfinite=allowed,
    )


def _one_scheme(name: str, options: Options, source: "Callable[[], Source]") -> "Output":
    has_scheme = options["scheme"] not in (None, "rows") or options["group_size"] is not None
    if has_scheme or options["bits"] != "8":
        raise click.UsageError(f"--format {name} has one scheme: 8 bits, one scale per row.")
    allowed = options["allow_nonfinite"]
    if name == "bitsandbytes":
        from quantize.formats import bitsandbytes

        return bitsandbytes.output(allow_nonfinite=allowed)
    from quantize.formats import deepspeed_int8

    return deepspeed_int8.output(source(), tp_size=options["tp"] or 1, allow_nonfinite=allowed)
