"""The functions that this package exports: quantize a checkpoint, decode one, and measure the errors."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import msgspec

from reshard.formats.base import Source
from reshard.job import open_source
from reshard.run import Report

from . import convert, restore
from .error_report import ErrorReport
from .formats import zero_inference
from .formats.base import Output
from .quality.loading import output_of
from .quality.model import model_errors
from .quality.tensors import tensor_errors
from .request import Request, output_for, scheme_for, zero_inference_target
from .scheme import ZeroInference
from .select import Decision, decide

Progress = Callable[[int], None]


class Quantized(msgspec.Struct, frozen=True, kw_only=True):
    """What `quantize` did.

    Attributes:
        output: the folder, or the DeepSpeed configuration, that was written.
        format: its format's name.
        decisions: what happened to every tensor, and why.
        notes: what somebody who loads it must know.
        report: files, tensors and bytes; None for a DeepSpeed configuration.
    """

    output: Path
    format: str
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]
    report: Report | None = None


def quantize(
    request: Request, *, progress: Progress = lambda _: None, started: Progress = lambda _: None
) -> Quantized:
    """Quantize a checkpoint, or write the DeepSpeed configuration that quantizes it while it is loaded.

    Args:
        request: which checkpoint, and how.
        progress: told of bytes read, from any thread.
        started: told how many bytes will be read, before the first.

    Raises:
        InvalidRequestError: fields that do not go together.
        CheckpointError: the checkpoint cannot be read, or not be quantized so; nothing is left behind.
    """
    if request.format_name == "zero-inference":
        return _configured(request)
    # Most formats need no look at the checkpoint, and what is remote is not opened twice.
    source = cache(lambda: open_source(str(request.checkpoint)))
    scheme_for(request)
    resharding = request.resharding(f"int{request.bits}")
    output = output_for(request, source)
    decided: dict[str, Decision] = {}
    report = convert.quantize(
        resharding,
        output,
        include=request.include,
        exclude=request.exclude,
        progress=progress,
        started=lambda job: started(sum(copy.read_bytes for copy in job.copies)),
        decided=decided.update,
    )
    return Quantized(
        output=report.output,
        format=output.name,
        decisions=tuple(decided.values()),
        notes=output.notes(source()),
        report=report,
    )


def dequantize(
    request: Request,
    dtype: str,
    *,
    progress: Progress = lambda _: None,
    started: Progress = lambda _: None,
) -> Report:
    """Make a plain checkpoint of a quantized one, which says itself how it is decoded.

    Args:
        request: which checkpoint, and where to write; its format, scheme and patterns are not looked at.
        dtype: of the weights: float32, float16 or bfloat16.
        progress: told of bytes read, from any thread.
        started: told how many bytes will be read, before the first.

    Raises:
        CheckpointError: the checkpoint is not quantized, or not in a form that is known.
    """
    return restore.dequantize(
        request.resharding(dtype),
        dtype,
        progress=progress,
        started=lambda job: started(sum(copy.read_bytes for copy in job.copies)),
    )


def report(
    request: Request,
    *,
    text: Path | None = None,
    progress: Progress = lambda _: None,
    started: Progress = lambda _: None,
) -> ErrorReport:
    """Measure the errors of all tensors and, on a text, of the model's predictions; no checkpoint is written.

    Args:
        request: which checkpoint, and how it would be quantized.
        text: a file in UTF-8; logits and perplexity on it are compared with the plain model's.
        progress: told of bytes read, from any thread, while tensors are measured.
        started: told how many bytes will be read, before the first.

    Raises:
        InvalidRequestError: fields that do not go together.
        CheckpointError: the checkpoint cannot be read, or not be quantized so.
        EvaluationError: a model's process failed.
    """
    scheme_for(request)
    source = open_source(str(request.checkpoint))
    output = _measured(request, source)
    errors = tensor_errors(
        source,
        output,
        include=request.include,
        exclude=request.exclude,
        memory_bytes=request.memory_bytes,
        jobs=request.num_jobs,
        progress=progress,
        started=started,
    )
    model = None
    if text is not None:
        model = model_errors(
            Path(request.checkpoint),
            output,
            text,
            include=request.include,
            exclude=request.exclude,
            memory_bytes=request.memory_bytes,
            jobs=request.num_jobs,
        )
    return ErrorReport(format=output.name, tensors=errors, model=model)


def _measured(request: Request, source: Source) -> Output:
    """The format that is named; else the scheme, in the plain format where that holds it."""
    if request.format not in (None, "zero-inference"):
        return output_for(request, lambda: source)
    scheme = scheme_for(request)
    if request.format == "zero-inference" and isinstance(scheme, ZeroInference):
        scheme = _fitting(request, source, scheme, decide(source, request.include, request.exclude))
    return output_of(scheme, allow_nonfinite=request.allow_nonfinite)


def _fitting(
    request: Request, source: Source, scheme: ZeroInference, decisions: Mapping[str, Decision]
) -> ZeroInference:
    """The scheme with groups that tile every chosen weight, unless their size is asked for."""
    if request.group_size is not None:
        return scheme
    return zero_inference.fitting_scheme(source, decisions, scheme.bits, dim=scheme.dim)


def _configured(request: Request) -> Quantized:
    scheme, output = zero_inference_target(request)
    source = open_source(str(request.checkpoint))
    decisions = decide(source, request.include, request.exclude)
    scheme = _fitting(request, source, scheme, decisions)
    zero_inference.write_ds_config(output, source, decisions, scheme, overwrite=request.overwrite)
    return Quantized(
        output=output,
        format="zero-inference",
        decisions=tuple(decisions.values()),
        notes=zero_inference.notes(scheme),
    )
