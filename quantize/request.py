"""What a caller asks of this package, and the scheme and the format that follow from it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from reshard.formats.base import Source
from reshard.job import Request as Resharding

from .deepspeed_selection import GROUP_DIM
from .errors import InvalidRequestError
from .formats.base import Output
from .names import FORMAT_NAMES, SCHEME_NAMES
from .scheme import SCHEMES, Scheme, ZeroInference

_GROUPS: Final = 64
_MOST_JOBS: Final = 8


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint to quantize, to measure or to decode, and how.

    Attributes:
        checkpoint: a folder or an address.
        output: the folder to write, or the file for `zero-inference`; None: beside the checkpoint.
        format: one of `FORMAT_NAMES`; None: the one that suits the scheme.
        scheme: one of `SCHEME_NAMES`; None: the format's own, else `symmetric-search`.
        bits: 8 or 4 per code.
        group_size: weights per scale, or `row`; None: the scheme's own.
        group_dim: for `zero-inference`, the dimension that groups run along, 0 (output) or 1 (input).
        groups: for `moq`, groups per tensor; None: 64.
        mlp_extra_grouping: for `moq`, twice the groups in MLPs of 4 × hidden.
        activations: for `compressed-tensors`, quantize activations by token as the model runs.
        tp_size: for `safetensors` and `deepspeed`, cut for so many ranks; None: not cut.
        include: shell patterns of modules or tensors that are quantized as well.
        exclude: patterns of what is not; they win.
        allow_nonfinite: take NaN and infinite weights for zero.
        memory_bytes: anonymous memory of the whole process; None: 512 MiB beside what it already has.
        jobs: threads; None: one per core, at most 8.
        max_shard_bytes: files are closed before they exceed it.
        overwrite: whether an output that this package wrote before may be replaced.
    """

    checkpoint: str | Path
    output: Path | None = None
    format: str | None = None
    scheme: str | None = None
    bits: int = 8
    group_size: int | Literal["row"] | None = None
    group_dim: int | None = None
    groups: int | None = None
    mlp_extra_grouping: bool = False
    activations: bool = False
    tp_size: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_nonfinite: bool = False
    memory_bytes: int | None = None
    jobs: int | None = None
    max_shard_bytes: int = 5 * 10**9
    overwrite: bool = False

    @property
    def num_jobs(self) -> int:
        """Threads."""
        return self.jobs or min(_MOST_JOBS, os.cpu_count() or 1)

    @property
    def format_name(self) -> str:
        """The format asked for, or the one that suits the scheme."""
        if self.format is not None:
            return self.format
        is_packed = self.scheme in (None, "symmetric", "symmetric-search")
        return "compressed-tensors" if is_packed else "safetensors"

    def resharding(self, suffix: str) -> Resharding:
        """What the machinery beneath is asked for; the output's name gets `suffix` where there is none."""
        folder = Path(os.path.abspath(self.checkpoint))
        return Resharding(
            source=str(self.checkpoint),
            output=self.output or folder.with_name(f"{folder.name}-{suffix}"),
            degrees=(self.tp_size or 1,),
            format="huggingface",
            memory_bytes=self.memory_bytes,
            jobs=self.num_jobs,
            max_shard_bytes=self.max_shard_bytes,
            overwrite=self.overwrite,
        )


def scheme_for(request: Request) -> Scheme:
    """The scheme asked for.

    Raises:
        InvalidRequestError: fields that do not belong to it, or a name that is not known.
        InvalidSchemeError: a setting that no formula has.
    """
    if request.format is not None and request.format not in FORMAT_NAMES:
        raise InvalidRequestError(f"`format='{request.format}'` is not one of {', '.join(FORMAT_NAMES)}")
    implied = {"zero-inference": "zero-inference", "deepspeed": "rows"}.get(request.format or "")
    name = request.scheme or implied or "symmetric-search"
    if name not in SCHEME_NAMES:
        raise InvalidRequestError(f"`scheme='{name}'` is not one of {', '.join(SCHEME_NAMES)}")
    settings: dict[str, Any] = {"bits": request.bits}
    if name == "moq":
        settings |= {
            "groups": request.groups or _GROUPS,
            "mlp_extra_grouping": request.mlp_extra_grouping,
        }
    elif request.groups or request.mlp_extra_grouping:
        raise InvalidRequestError("`groups` and `mlp_extra_grouping` belong to `scheme='moq'`")
    settings |= _group_settings(request, name)
    return SCHEMES[name](**settings)


def _group_settings(request: Request, name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if request.group_size is not None:
        if name in ("moq", "rows"):
            raise InvalidRequestError(f"`group_size` does not belong to `scheme='{name}'`")
        if request.group_size == "row" and name == "zero-inference":
            raise InvalidRequestError("`scheme='zero-inference'` needs a number of weights per group")
        settings["group_size"] = None if request.group_size == "row" else request.group_size
    elif request.activations and name in ("symmetric", "symmetric-search"):
        # Activations are multiplied with whole rows.
        settings["group_size"] = None
    if name == "zero-inference" and request.format == "zero-inference":
        settings["dim"] = GROUP_DIM
    if request.group_dim is not None:
        if name != "zero-inference":
            raise InvalidRequestError("`group_dim` belongs to `scheme='zero-inference'`")
        settings["dim"] = request.group_dim
    return settings


def zero_inference_target(request: Request) -> tuple[ZeroInference, Path]:
    """The scheme of a DeepSpeed configuration, and its file.

    Raises:
        InvalidRequestError: another scheme is asked for, or no output, which has no default.
    """
    scheme = scheme_for(request)
    if not isinstance(scheme, ZeroInference):
        raise InvalidRequestError(f"`scheme='{scheme.name}'` is not ZeRO-Inference's")
    if request.output is None:
        raise InvalidRequestError("say where the DeepSpeed configuration goes: `output='ds_config.json'`")
    return scheme, request.output


def output_for(request: Request, source: Callable[[], Source]) -> Output:
    """The format of a checkpoint that is asked for.

    Args:
        request: its format is not `zero-inference`.
        source: opens the checkpoint, which most formats need not look at.

    Raises:
        InvalidRequestError: fields that do not go together.
        UnsupportedTargetError: a format that cannot hold the scheme.
    """
    scheme, name, allowed = scheme_for(request), request.format_name, request.allow_nonfinite
    if request.activations and name != "compressed-tensors":
        raise InvalidRequestError("`activations` belongs to `format='compressed-tensors'`")
    if request.tp_size and name not in ("safetensors", "deepspeed"):
        raise InvalidRequestError(
            "`tp_size` belongs to `format='safetensors'` and `format='deepspeed'`; cut others with reshard"
        )
    if name == "safetensors":
        from .formats import plain

        return plain.output(scheme, allow_nonfinite=allowed)
    if name in ("bitsandbytes", "deepspeed"):
        return _one_scheme(request, source)
    from .formats import compressed_tensors

    if scheme.name not in ("symmetric", "symmetric-search"):
        raise InvalidRequestError(f"`scheme='{scheme.name}'` has no place in compressed-tensors")
    return compressed_tensors.output(
        bits=scheme.bits,
        group_size=getattr(scheme, "group_size", None),
        scales="search" if scheme.name == "symmetric-search" else "absmax",
        activations=request.activations,
        allow_nonfinite=allowed,
    )


def _one_scheme(request: Request, source: Callable[[], Source]) -> Output:
    name, allowed = request.format_name, request.allow_nonfinite
    has_scheme = request.scheme not in (None, "rows") or request.group_size is not None
    if has_scheme or request.bits != 8:
        raise InvalidRequestError(f"`format='{name}'` has one scheme: 8 bits, one scale per row")
    if name == "bitsandbytes":
        from .formats import bitsandbytes

        return bitsandbytes.output(allow_nonfinite=allowed)
    from .formats import deepspeed_int8

    return deepspeed_int8.output(source(), tp_size=request.tp_size or 1, allow_nonfinite=allowed)
