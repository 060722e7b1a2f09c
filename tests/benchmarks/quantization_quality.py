"""What every scheme costs. `python tests/benchmarks/quantization_quality.py [--dtype DTYPE ...] [--out OUT]`.

On the trained model of the fixtures: the weights' error, and perplexity and logits on text it never saw, with
decoded weights and as transformers loads the files. On synthetic matrices: `search` against MoQ at the same
bytes. Writes a table, JSON and a picture.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

_ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_ROOT))
# The children import the same work tree, whatever is installed.
os.environ["PYTHONPATH"] = str(_ROOT)

from quantize.convert import quantize  # noqa: E402
from quantize.formats import bitsandbytes, compressed_tensors  # noqa: E402
from quantize.formats.base import Output  # noqa: E402
from quantize.groups import blocks, moq, search, symmetric  # noqa: E402
from quantize.plot import plot_errors  # noqa: E402
from quantize.quality.measures import Sums, relative_error  # noqa: E402
from quantize.quality.model import model_errors  # noqa: E402
from quantize.quality.tensors import TensorError, tensor_errors, totals  # noqa: E402
from quantize.scheme import Groups, Moq, Rows, Scheme, SymmetricSearch, ZeroInference  # noqa: E402
from reshard.job import Request, open_source  # noqa: E402

_MODEL: Final = _ROOT / "fixtures" / "trained"
_TEXT: Final = _ROOT / "LICENSE"
_WINDOW: Final = 256
_JOBS: Final = 1

#: Label → what is measured with decoded weights. The first ones are W8A16 at their defaults.
_DECODED: Final[dict[str, Output | Scheme]] = {
    "moq": Moq(),
    "rows": Rows(),
    "groups": Groups(),
    "zero-inference": ZeroInference(),
    "absmax (compressed-tensors)": compressed_tensors.output(scales="absmax"),
    "search (compressed-tensors)": compressed_tensors.output(),
    "search, rows": compressed_tensors.output(group_size=None),
    "bitsandbytes": bitsandbytes.output(),
    "4 bits: zero-inference": ZeroInference(bits=4),
    "4 bits: absmax": compressed_tensors.output(bits=4, scales="absmax"),
    "4 bits: search": compressed_tensors.output(bits=4),
    "4 bits: search, groups of 32": compressed_tensors.output(bits=4, group_size=32),
}
#: Label → what is written, and loaded by transformers.
_LOADED: Final[dict[str, Output]] = {
    "search (compressed-tensors)": compressed_tensors.output(),
    "W8A8 (compressed-tensors)": compressed_tensors.output(group_size=None, activations=True),
    "bitsandbytes, LLM.int8()": bitsandbytes.output(),
    "4 bits: search": compressed_tensors.output(bits=4),
}
_WORDS: Final = {
    "search (compressed-tensors)": "8 bits, search, groups of 128",
    "moq": "8 bits, MoQ, 64 groups per tensor",
    "4 bits: search": "4 bits, search, groups of 128",
    "4 bits: absmax": "4 bits, absmax, groups of 128",
}


def _measure(dtype: str, found: dict[str, tuple[TensorError, ...]]) -> list[dict[str, Any]]:
    """A row for each way to quantize; `found` gets the tensors' errors."""
    source = open_source(str(_MODEL))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for label, output in _DECODED.items():
            found[label] = tensor_errors(source, output, jobs=_JOBS)
            rows.append(_row(label, "decoded weights", found[label], _model(output, dtype)))
            print(_line(rows[-1]), flush=True)
        for number, (label, output) in enumerate(_LOADED.items()):
            folder = Path(scratch) / str(number)
            quantize(Request(source=str(_MODEL), output=folder, degrees=(1,), jobs=_JOBS), output)
            errors = tensor_errors(source, output, jobs=_JOBS)
            rows.append(_row(label, "transformers", errors, _model(folder, dtype)))
            print(_line(rows[-1]), flush=True)
    return rows


def _model(quantized: Output | Scheme | Path, dtype: str) -> dict[str, Any]:
    found = model_errors(
        _MODEL, quantized, _TEXT, dtype=dtype, window_tokens=_WINDOW, max_tokens=None, jobs=_JOBS
    )
    made: dict[str, Any] = msgspec.to_builtins(found)
    return {**made, "perplexity": found.quantized.perplexity, "plain_perplexity": found.plain.perplexity}


def _row(label: str, runs: str, errors: Iterable[TensorError], model: dict[str, Any]) -> dict[str, Any]:
    quantized = [e for e in errors if e.decision.is_quantized]
    whole = totals(quantized)
    kept = ("num_tokens", "plain_perplexity", "perplexity", "perplexity_increase", "logits_relative_error")
    kept += ("logits_max_abs_error", "kl_divergence_nats", "top1_agreement")
    return {
        "scheme": label,
        "runs": runs,
        "weight_bits": 8 * whole.output_bytes / sum(int(np.prod(e.shape)) for e in quantized),
        "relative_error": whole.relative_error,
        "sqnr_db": whole.sqnr_db,
        "max_abs_error": whole.max_abs_error,
        **{key: model[key] for key in kept},
    }


def _same_bytes() -> list[dict[str, Any]]:
    """MoQ with as many bytes of scales as `search` has, tensor by tensor of the trained model."""
    source = open_source(str(_MODEL))
    by_name = {e.name: e for e in tensor_errors(source, SymmetricSearch(), jobs=_JOBS)}
    rows: dict[str, tuple[TensorError, TensorError]] = {}
    for groups in (64, 128):
        for error in tensor_errors(source, Moq(groups=groups), jobs=_JOBS):
            other = by_name[error.name]
            if error.decision.is_quantized and error.output_bytes == other.output_bytes:
                rows[error.name] = (error, other)
    assert len(rows) == sum(e.decision.is_quantized for e in by_name.values())
    sides = [totals(side) for side in zip(*rows.values(), strict=True)]
    assert sides[0].output_bytes == sides[1].output_bytes
    better = sum(b.error_energy < a.error_energy for a, b in rows.values())
    words = f"trained model: better in {better} of {len(rows)} tensors"
    return [_against(words, sides[0].relative_error, sides[1].relative_error), *_synthetic()]


def _synthetic() -> list[dict[str, Any]]:
    """The same for 1024 x 4096 matrices of known distributions."""
    random = np.random.default_rng(0)
    shape = (1024, 4096)
    # A scale in float32 takes twice the bytes of one in 16 bits, so MoQ's groups are twice as long.
    numel = Moq(groups=shape[0] * shape[1] // 256).group_numel(shape)
    rows = []
    for words, values in (
        ("normal", random.standard_normal(shape)),
        ("Student t, 4", random.standard_t(4, shape)),
    ):
        for dtype in (np.dtype(np.float16), np.dtype(np.uint16)):
            block = blocks.narrow((values * 0.02).astype(np.float32), dtype)
            made = moq.encode(block, group_numel=numel)
            kept = moq.kept(made.scales).reshape(-1)
            first = _error(block, moq.decode(made.codes, kept, group_numel=numel, dtype=dtype))
            second = _error(block, symmetric.decode(*search.encode(block)[:2]))
            name = "bfloat16" if dtype == np.uint16 else "float16"
            rows.append(_against(f"{words}, {name}", first, second))
    return rows


def _against(words: str, moq_error: float, search_error: float) -> dict[str, Any]:
    return {"weights": words, "moq": moq_error, "search": search_error, "ratio": search_error / moq_error}


def _error(block: blocks.Block, decoded: blocks.Block) -> float:
    sums = Sums()
    sums.add(block, decoded)
    return relative_error(sums.weight_energy, sums.error_energy)


_HEAD: Final = (
    "| scheme | runs as | bits per weight | weights' error | SQNR dB | perplexity | increase | logits' error "
    "| KL nats | same top token |\n|---|---|---|---|---|---|---|---|---|---|"
)


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['scheme']} | {row['runs']} | {row['weight_bits']:.3f} | {100 * row['relative_error']:.3f} % "
        f"| {row['sqnr_db']:.2f} | {row['perplexity']:.4f} | {row['perplexity_increase']:+.4f} "
        f"| {100 * row['logits_relative_error']:.3f} % | {row['kl_divergence_nats']:.2e} "
        f"| {100 * row['top1_agreement']:.2f} % |"
    )


def _text(report: dict[str, Any]) -> str:
    lines = [f"# What quantization costs, {report['date']}", "", report["machine"], "", report["model"], ""]
    for dtype, rows in report["schemes"].items():
        plain = rows[0]["plain_perplexity"]
        lines += [f"Computed in {dtype}; the plain model's perplexity is {plain:.4f}.", "", _HEAD]
        lines += [*map(_line, rows), ""]
    lines += ["`search` against MoQ, with the same bytes of codes and of scales:", ""]
    lines += ["| weights | MoQ | search | ratio |", "|---|---|---|---|"]
    for row in report["same_bytes"]:
        shares = f"{100 * row['moq']:.4f} % | {100 * row['search']:.4f} % | {row['ratio']:.3f}"
        lines.append(f"| {row['weights']} | {shares} |")
    return "\n".join(lines) + "\n"


def _main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", nargs="+", default=["float32", "float16"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    args = parser.parse_args(arguments)
    names = ("torch", "transformers", "compressed-tensors", "bitsandbytes", "numba")
    found: dict[str, tuple[TensorError, ...]] = {}
    report = {
        "date": str(datetime.date.today()),
        "machine": f"{platform.machine()} CPU; " + ", ".join(f"{n} {version(n)}" for n in names),
        "model": "The fixtures' trained GPT-J: 24 Linears, together 524288 weights, in float16; "
        f"text: LICENSE, {_TEXT.stat().st_size} bytes, one token each, in overlapping windows of {_WINDOW}.",
        "schemes": {dtype: _measure(dtype, found) for dtype in args.dtype},
        "same_bytes": _same_bytes(),
    }
    stem = args.out / f"{report['date']}-quantization-quality"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(_text(report))
    panels = {words: found[label] for label, words in _WORDS.items()}
    plot_errors(
        stem.with_suffix(".png"),
        panels,
        title="The fixtures' trained model: error by block and kind of module",
    )
    print(_text(report))


if __name__ == "__main__":
    _main()
