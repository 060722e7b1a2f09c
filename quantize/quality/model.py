"""Errors of a quantized model's predictions, compared with the plain model: logits and perplexity.

Both models run on the CPU under transformers, one after the other in child processes, so one model at a time
is in memory. A quantized folder is loaded as its users load it. A format or scheme is measured without one:
the decoded weights are written, in bounded memory, as a plain checkpoint that the plain model loads.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from reshard.encoding import Encoder
from reshard.errors import MissingFileError, UnsupportedSourceError
from reshard.formats.base import Source
from reshard.job import Request
from reshard.run import reshard

from ..convert import check_unquantized
from ..errors import EvaluationError, QuantizeError
from ..formats import plain
from ..formats.base import Output
from ..scheme import Scheme
from ..select import decide, quantized
from .decoding import RoundTrip
from .loading import output_of
from .tensors import round_trip

#: As `predictions.REFUSED`, which is not imported: it imports torch.
_REFUSED: Final = 3
_QUIET: Final = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """One model, run.

    Attributes:
        perplexity: per token of the text.
        elapsed_s: to load and to predict.
        peak_rss_bytes: resident memory of its process at most.
    """

    perplexity: float
    elapsed_s: float
    peak_rss_bytes: int


class ModelErrors(msgspec.Struct, frozen=True, kw_only=True):
    """What quantization does to predictions.

    Attributes:
        num_tokens: of the text; all but the first are predicted.
        window_tokens: of one forward; windows overlap by half.
        dtype: of the computation.
        runs: what the second model was, in words.
        plain: the plain model.
        quantized: the other one.
        perplexity_increase: the difference of both.
        logits_relative_error: norm of the logits' error over the norm of the logits, after what all logits of
            a position have in common, which softmax ignores, is taken out of both.
        logits_max_abs_error: the largest error of such a logit.
        kl_divergence_nats: of the predicted distributions, mean over tokens.
        top1_agreement: the share of tokens for which both hold the same one most likely.
    """

    num_tokens: int
    window_tokens: int
    dtype: str
    runs: str
    plain: Evaluation
    quantized: Evaluation
    perplexity_increase: float
    logits_relative_error: float
    logits_max_abs_error: float
    kl_divergence_nats: float
    top1_agreement: float


class _Decoded:
    """A `reshard.encoding.Transform` that gives quantized weights as they are decoded."""

    def __init__(
        self, source: Source, output: Output, include: Iterable[str], exclude: Iterable[str]
    ) -> None:
        check_unquantized(source)
        decisions = decide(source, include, exclude)
        self._source, self._output = source, output
        self._names = quantized(decisions)
        self._config = output.config(source, decisions)
        for name in self._names:
            # Refuses what the format cannot hold, before anything is written.
            output.derived(name, source.tensors[name])

    def apply(self, source: Source) -> Source:
        """The source: names, dtypes and shapes stay."""
        return source

    def derived(self) -> dict[str, tuple[str, ...]]:
        """Weight → itself."""
        return {name: (name,) for name in self._names}

    def encoder(self, name: str) -> Encoder:
        """What encodes and decodes the weight called `name`."""
        coder: RoundTrip = round_trip(self._output, self._config, name, self._source.tensors[name])
        return coder


def write_decoded(
    request: Request, output: Output | Scheme, *, include: Iterable[str] = (), exclude: Iterable[str] = ()
) -> Path:
    """Write a plain Hugging Face checkpoint of the weights that a quantized one is decoded to.

    Args:
        request: what `reshard` is asked for; format and degrees are not looked at.
        output: a format; or a scheme, as for `tensor_errors`.
        include: as for `quantize.select.decide`.
        exclude: the same.

    Returns:
        The folder, `request.output`.

    Raises:
        CheckpointError: the checkpoint cannot be read, or not be quantized so; nothing is left behind.
    """
    chosen = output if isinstance(output, Output) else output_of(output)
    wanted = msgspec.structs.replace(request, format="huggingface", degrees=(1,), dtype=None)
    patterns = tuple(include), tuple(exclude)
    return reshard(wanted, transform=lambda source: _Decoded(source, chosen, *patterns)).output


def model_errors(
    checkpoint: Path,
    quantized: Path | Output | Scheme,
    text: Path,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dtype: str = "float32",
    window_tokens: int = 512,
    max_tokens: int | None = 4096,
    memory_bytes: int | None = None,
    jobs: int = 4,
    scratch: Path | None = None,
) -> ModelErrors:
    """Compare a quantized model's predictions with the plain one's.

    Memory: one model at a time, in a process of its own, and a window's logits. Disk: the plain model's
    logits, 4 bytes * tokens * vocabulary; for a format or scheme, the decoded checkpoint as well. Both go.

    Args:
        checkpoint: the plain model's folder, with its tokenizer.
        quantized: a folder that transformers loads; a format; or a scheme.
        text: UTF-8.
        include: as for `quantize.select.decide`; not for a folder.
        exclude: the same.
        dtype: of the computation, and of activations. float32 shows what quantization does and nothing else.
        window_tokens: of one forward; the model's positions where those are fewer.
        max_tokens: of the text, from its beginning; None takes all.
        memory_bytes: for writing the decoded checkpoint.
        jobs: threads.
        scratch: a folder on a disk that has room; None takes the system's.

    Raises:
        UnsupportedSourceError: no causal language model, no tokenizer, or a folder that transformers cannot
            load.
        QuantizeError: the model cannot be quantized so.
        MissingFileError: no such folder or text.
        EvaluationError: a model's process failed.
    """
    for path in (checkpoint, text, *((quantized,) if isinstance(quantized, Path) else ())):
        if not path.exists():
            raise MissingFileError(f"{path} is not there")
    if window_tokens < 2:
        raise QuantizeError(f"windows of {window_tokens} tokens predict nothing; take 2 or more")
    with tempfile.TemporaryDirectory(prefix="quality-", dir=scratch) as folder:
        work = Path(folder)
        options = ["--dtype", dtype, "--window", str(window_tokens)]
        if isinstance(quantized, Path):
            _check_loadable(quantized)
            other, runs = quantized, f"{quantized}, as transformers loads it"
        else:
            request = Request(
                source=str(checkpoint),
                output=work / "decoded",
                degrees=(1,),
                memory_bytes=memory_bytes,
                jobs=jobs,
            )
            other = write_decoded(request, quantized, include=include, exclude=exclude)
            runs = "the plain model with decoded weights"
        first = [*options, "--text", str(text.resolve())]
        first += ["--max-tokens", str(max_tokens)] if max_tokens is not None else []
        plain_report = _run(checkpoint, first, work, jobs, "the plain model")
        coded_report = _run(other, options, work, jobs, "the quantized model")
    return _errors(plain_report, coded_report, dtype, runs)


def _errors(plain_report: dict[str, Any], coded_report: dict[str, Any], dtype: str, runs: str) -> ModelErrors:
    sides = [msgspec.convert(report, Evaluation) for report in (plain_report, coded_report)]
    return ModelErrors(
        num_tokens=coded_report["num_tokens"],
        window_tokens=coded_report["window_tokens"],
        dtype=dtype,
        runs=runs,
        plain=sides[0],
        quantized=sides[1],
        perplexity_increase=sides[1].perplexity - sides[0].perplexity,
        logits_relative_error=coded_report["logits_relative_error"],
        logits_max_abs_error=coded_report["logits_max_abs_error"],
        kl_divergence_nats=coded_report["kl_divergence_nats"],
        top1_agreement=coded_report["top1_agreement"],
    )


def _check_loadable(folder: Path) -> None:
    config = folder / "config.json"
    if not config.exists():
        raise MissingFileError(
            f"{config} is not there: transformers loads whole checkpoints, not ranks' shards"
        )
    recipe = json.loads(config.read_bytes()).get("quantization_config") or {}
    if recipe.get("quant_method") == plain.METHOD:
        raise UnsupportedSourceError(
            f"{folder} is in this project's plain format, which transformers does not load; take what "
            "`dequantize` makes of it, or give its scheme instead"
        )


def _run(checkpoint: Path, options: list[str], work: Path, jobs: int, what: str) -> dict[str, Any]:
    """Run a child process to its end; the last line of its standard error becomes the error message."""
    report = work / "report.json"
    command = [sys.executable, "-m", "quantize.quality.predictions", str(checkpoint.resolve()), *options]
    command += ["--shared", str(work), "--report", str(report)]
    # A child that is killed cannot remove its temporary files; in `work` they go all the same.
    environment = {**os.environ, **_QUIET, "TMPDIR": str(work), "OMP_NUM_THREADS": str(jobs)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(report.read_bytes())
        return result
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else "it printed no error"
    if done.returncode == _REFUSED:
        raise UnsupportedSourceError(last)
    how = (
        f"was killed by {signal.Signals(-done.returncode).name}"
        if done.returncode < 0
        else f"failed with status {done.returncode}"
    )
    raise EvaluationError(f"{what} {how}: {last}")
