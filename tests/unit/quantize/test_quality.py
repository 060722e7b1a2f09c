"""Errors by hand: sums, what is said of them, and what comes back from every format and scheme."""

import math
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quantize.errors import QuantizeError
from quantize.formats import bitsandbytes, compressed_tensors, plain
from quantize.formats.base import Output
from quantize.groups import blocks, moq
from quantize.plot import plot_errors, points
from quantize.quality.decoding import RoundTrip, decoder
from quantize.quality.loading import output_of
from quantize.quality.measures import Sums, relative_error, sqnr_db
from quantize.quality.predictions import predictions
from quantize.quality.tensors import TensorError, round_trip, totals
from quantize.scheme import Groups, Moq, Rows, Scheme, Symmetric, SymmetricSearch, ZeroInference
from quantize.select import Decision
from reshard.errors import UnsupportedTargetError
from reshard.job import open_source
from reshard.tensors import LogicalTensor

MODEL = Path(__file__).resolve().parents[3] / "fixtures" / "trained"
NAME = "transformer.h.0.attn.q_proj.weight"

OUTPUTS: dict[str, Output | Scheme] = {
    "moq": Moq(groups=7),
    "moq, one group": Moq(groups=1),
    "rows": Rows(group_rows=4),
    "groups": Groups(group_size=32),
    "symmetric": Symmetric(group_size=None),
    "symmetric-search": SymmetricSearch(group_size=32),
    "zero-inference": ZeroInference(group_size=32),
    "zero-inference, 4 bits": ZeroInference(group_size=32, bits=4),
    "zero-inference, rows": ZeroInference(group_size=8, dim=0),
    "zero-inference, rows, 4 bits": ZeroInference(group_size=8, dim=0, bits=4),
    "compressed-tensors": compressed_tensors.output(group_size=32),
    "compressed-tensors, 4 bits": compressed_tensors.output(group_size=32, bits=4),
    "compressed-tensors, W8A8": compressed_tensors.output(group_size=None, activations=True),
    "bitsandbytes": bitsandbytes.output(),
}


def _block(dtype: str, shape: tuple[int, int] = (24, 64)) -> blocks.Block:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if dtype == "bfloat16":
        return blocks.narrow(values, np.dtype(np.uint16))
    return values.astype(dtype)


def _coder(output: Output | Scheme, tensor: LogicalTensor) -> RoundTrip:
    found = output if isinstance(output, Output) else output_of(output)
    # What the configuration says of weights does not depend on the checkpoint, which lends a family.
    config = found.config(open_source(str(MODEL)), {})
    return round_trip(found, config, NAME, tensor)


def _through(coder: RoundTrip, block: blocks.Block, rows: int) -> NDArray[Any]:
    """A block encoded and decoded in strips of so many rows."""
    bits = block.view(f"u{block.itemsize}")
    boxes = [((b, min(b + rows, len(bits))), (0, bits.shape[1])) for b in range(0, len(bits), rows)]
    if coder.is_two_pass:
        for box in boxes:
            coder.observe(box, bits[slice(*box[0])])
    made = [array for box in boxes for _, _, array in coder.encode(box, bits[slice(*box[0])])]
    return np.concatenate(made).view(block.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("label", OUTPUTS)
def test_what_comes_back_is_near_and_does_not_depend_on_strips(label: str, dtype: str) -> None:
    block = _block(dtype)
    tensor = LogicalTensor(dtype=dtype, shape=block.shape)
    whole = _through(_coder(OUTPUTS[label], tensor), block, 24)
    assert whole.dtype == block.dtype
    assert whole.shape == block.shape
    for rows in (8, 16):
        assert np.array_equal(
            _through(_coder(OUTPUTS[label], tensor), block, rows).view(np.uint8), whole.view(np.uint8)
        )
    values, decoded = blocks.widen(block), blocks.widen(whole)
    bits = 4 if "4 bits" in label else 8
    # A step spans at most 2 * max / (2^bits - 1). Rounding is off by half of one; clipping, and rounding to
    # bfloat16 (2^-8 of the value), by no more than one and a half here.
    step = 2 * np.abs(values).max() / (2**bits - 1)
    assert np.abs(decoded - values).max() < 2 * step
    assert not np.array_equal(decoded, values)


def test_moq_comes_back_as_the_formula_says() -> None:
    block = _block("float16")
    # 1536 weights in 15 groups: chunks of 102, which end inside of rows, and 6 weights remain.
    numel = Moq(groups=15).group_numel((24, 64))
    found = moq.encode(block, group_numel=numel)
    kept = moq.kept(found.scales).reshape(-1)
    expected = moq.decode(found.codes, kept, group_numel=numel, dtype=block.dtype)
    coder = _coder(Moq(groups=15), LogicalTensor(dtype="float16", shape=block.shape))
    assert np.array_equal(_through(coder, block, 5), expected)


def test_four_bits_of_zero_inference_are_half_the_bytes() -> None:
    tensor = LogicalTensor(dtype="float16", shape=(24, 64))
    for dim, table in ((0, (3, 64)), (1, (24, 8))):
        made = output_of(ZeroInference(bits=4, group_size=8, dim=dim)).derived(NAME, tensor)
        assert made[NAME] == LogicalTensor(dtype="uint8", shape=(24, 32))
        assert {t.shape for n, t in made.items() if n != NAME} == {table}


def test_unknown_methods_have_no_decoder() -> None:
    tensor = LogicalTensor(dtype="float16", shape=(2, 2))
    with pytest.raises(UnsupportedTargetError, match="no decoder for quant_method 'gptq'"):
        decoder({"quant_method": "gptq"}, NAME, tensor)
    with pytest.raises(UnsupportedTargetError, match="no decoder"):
        decoder(None, NAME, tensor)


def test_plain_format_refuses_what_it_does_not_hold() -> None:
    with pytest.raises(UnsupportedTargetError, match="4 bits are packed by compressed-tensors"):
        output_of(Moq(bits=4))
    assert output_of(ZeroInference()).name == plain.output(ZeroInference()).name


def test_sums_by_hand() -> None:
    sums = Sums()
    # Squares 9 + 16; errors -1 and 0.5: 1 + 0.25.
    sums.add(np.array([[3.0, -4.0]], np.float32), np.array([[2.0, -3.5]], np.float32))
    assert (sums.weight_energy, sums.error_energy, sums.max_abs_error) == (25.0, 1.25, 1.0)
    assert relative_error(25.0, 1.25) == pytest.approx(math.sqrt(0.05))
    assert sqnr_db(25.0, 1.25) == pytest.approx(10 * math.log10(20))


def test_sums_leave_out_weights_that_are_not_finite() -> None:
    sums = Sums()
    sums.add(np.array([np.nan, np.inf, 2.0], np.float16), np.array([0.0, 0.0, 1.0], np.float16))
    assert (sums.weight_energy, sums.error_energy, sums.num_nonfinite) == (4.0, 1.0, 2)
    sums.add(np.array([np.nan], np.float32), np.array([0.0], np.float32))
    assert sums.num_nonfinite == 3


def test_sums_hold_squares_that_float32_cannot() -> None:
    tiny = blocks.narrow(np.full(70_000, 1e-30, np.float32), np.dtype(np.uint16))
    sums = Sums()
    sums.add(tiny, np.zeros_like(tiny))
    assert sums.weight_energy == sums.error_energy == pytest.approx(70_000 * 1e-60, rel=0.01)


def test_no_error_and_nothing_else() -> None:
    assert (relative_error(0.0, 0.0), sqnr_db(0.0, 0.0)) == (0.0, math.inf)
    assert (relative_error(0.0, 1.0), sqnr_db(0.0, 1.0)) == (math.inf, -math.inf)


def _error(module: str, role: Any, weights: float, noise: float, *, is_quantized: bool = True) -> TensorError:
    decision = Decision(
        name=f"{module}.weight", role=role, module=module, is_quantized=is_quantized, reason="for this test"
    )
    return TensorError(
        decision=decision,
        dtype="float16",
        shape=(2, 2),
        source_bytes=8,
        output_bytes=6 if is_quantized else 8,
        weight_energy=weights,
        error_energy=noise,
        relative_error=relative_error(weights, noise),
        sqnr_db=sqnr_db(weights, noise),
        max_abs_error=noise,
    )


ERRORS = (
    _error("model.layers.10.mlp.experts.0.up_proj", "mlp_up", 100.0, 1.0),
    _error("model.layers.10.mlp.experts.1.up_proj", "mlp_up", 300.0, 3.0),
    _error("model.layers.2.self_attn.q_proj", "query", 4.0, 1.0),
    _error("score", "row", 1.0, 0.25),
    _error("model.embed_tokens", "embedding", 0.0, 0.0, is_quantized=False),
)


def test_totals_are_of_all_weights_together() -> None:
    found = totals(ERRORS)
    assert (found.num_tensors, found.num_quantized) == (5, 4)
    assert (found.source_bytes, found.output_bytes) == (40, 32)
    # (1 + 3 + 1 + 0.25) / (100 + 300 + 4 + 1)
    assert found.relative_error == pytest.approx(math.sqrt(5.25 / 405))
    assert found.sqnr_db == pytest.approx(10 * math.log10(405 / 5.25))
    assert found.max_abs_error == 3.0


def test_points_join_the_experts_of_a_block_and_sort_blocks_by_number() -> None:
    found = [(p.stack, p.block, p.role, p.relative_error) for p in points(ERRORS)]
    assert found == [
        ("", -1, "row", 0.5),
        ("model.layers", 2, "query", 0.5),
        ("model.layers", 10, "mlp_up", pytest.approx(0.1)),  # (1 + 3) / (100 + 300)
    ]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures_are_drawn(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    path = tmp_path / f"errors{suffix}"
    plot_errors(path, {"one way": ERRORS, "another": ERRORS[2:], "a third": ERRORS}, title="a model")
    raw = path.read_bytes()
    assert raw.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in raw
    assert len(raw) > 5000


def test_pictures_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QuantizeError, match=r"ends in \.png, \.svg"):
        plot_errors(tmp_path / "errors.txt", {"": ERRORS})
    with pytest.raises(QuantizeError, match="no tensor is quantized"):
        plot_errors(tmp_path / "errors.png", {"": ERRORS[-1:]})
    # None in the table of modules is how Python marks one that is not to be found.
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(QuantizeError, match="pip install matplotlib"):
        plot_errors(tmp_path / "errors.png", {"": ERRORS})
    assert not list(tmp_path.iterdir())


def test_every_token_is_predicted_once_with_half_a_window_before_it() -> None:
    class Positions:
        """Logits that say which tokens the model was shown: the first one, and the one at the position."""

        def __call__(self, tokens: torch.Tensor, use_cache: bool) -> Any:
            assert not use_cache
            assert tokens.shape[1] <= 16
            shown = torch.stack([tokens[0, :1].expand_as(tokens[0]), tokens[0]], -1)
            return type("Output", (), {"logits": shown[None].float()})

    for length in (2, 15, 16, 17, 24, 25, 33, 100):
        tokens = torch.arange(length)
        predicted: list[int] = []
        for done, logits, wanted in predictions(Positions(), tokens, 16):
            assert done == len(predicted)
            predicted += wanted.tolist()
            for (first, at), token in zip(logits.int().tolist(), wanted.tolist(), strict=True):
                assert at == token - 1
                assert first == 0 or token - first >= 8
        assert predicted == list(range(1, length))


def test_measuring_takes_no_more_memory_than_a_strip_needs() -> None:
    block = _block("float16", (4096, 2048))  # 16 MiB
    tensor = LogicalTensor(dtype="float16", shape=block.shape)
    bits = block.view(np.uint16)
    coder, sums = _coder(Moq(), tensor), Sums()
    for is_warm in (False, True):
        if is_warm:
            tracemalloc.start()
        for begin in range(0, 4096, 64):
            box = ((begin, begin + 64), (0, 2048))
            coder.observe(box, bits[begin : begin + 64])
        for begin in range(0, 4096, 64):
            box = ((begin, begin + 64), (0, 2048))
            for _, _, made in coder.encode(box, bits[begin : begin + 64]):
                sums.add(block[begin : begin + 64], made.view(np.float16))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A strip is 256 KiB of weights; tiles of 32768 float64s are 256 KiB each, and a few live at a time.
    assert peak_bytes < 4 << 20
