"""Errors of real checkpoints, against what other libraries decode."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from fixtures.train import TRAINED
from quantize.convert import quantize
from quantize.errors import GroupSizeError, QuantizeError
from quantize.formats import bitsandbytes, compressed_tensors, deepspeed_int8
from quantize.formats.base import Output
from quantize.quality.model import write_decoded
from quantize.quality.tensors import TensorError, tensor_errors, totals
from quantize.scheme import Groups, Moq, Rows, Scheme, SymmetricSearch, ZeroInference
from reshard.errors import DamagedFileError, UnsupportedSourceError
from reshard.job import Request, open_source

from .checkpoints import quantized_copy, tensors_of, wide_model


def _measured(output: Output | Scheme) -> dict[str, TensorError]:
    return {e.name: e for e in tensor_errors(open_source(str(TRAINED)), output, jobs=2)}


def _check(found: dict[str, TensorError], decoded: dict[str, torch.Tensor]) -> None:
    """The same errors, by torch in float64 and over whole tensors."""
    given = tensors_of(TRAINED)
    measured = {name for name, error in found.items() if error.decision.is_quantized}
    assert measured == set(decoded)
    assert len(measured) == 24
    for name, values in decoded.items():
        assert values.dtype == given[name].dtype
        weights, error = given[name].double(), values.double() - given[name].double()
        assert found[name].relative_error == pytest.approx(float(error.norm() / weights.norm()), rel=1e-12)
        assert found[name].max_abs_error == float(error.abs().max())
        assert found[name].sqnr_db == pytest.approx(20 * float(torch.log10(weights.norm() / error.norm())))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scales", ["absmax", "search"])
def test_errors_are_those_of_what_compressed_tensors_unpacks(tmp_path: Path, bits: int, scales: Any) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    output = compressed_tensors.output(bits=bits, scales=scales)
    stored = tensors_of(quantized_copy(tmp_path / "out", output))
    decoded = {}
    for name in [n for n in stored if n.endswith(".weight_packed")]:
        module = name.removesuffix(".weight_packed")
        shape = torch.Size(stored[f"{module}.weight_shape"].tolist())
        codes = unpack_from_int32(stored[name], bits, shape)
        scale = stored[f"{module}.weight_scale"]
        decoded[f"{module}.weight"] = codes.to(scale.dtype) * scale.repeat_interleave(128, 1)
    _check(_measured(output), decoded)


def test_errors_are_those_of_what_deepspeed_quantizes() -> None:
    from deepspeed.runtime.weight_quantizer import WeightQuantization

    found = _measured(Moq())
    given = tensors_of(TRAINED)
    decoded = {}
    for name in [n for n, error in found.items() if error.decision.is_quantized]:
        codes, scales = WeightQuantization(mlp_extra_grouping=False).quantize_data(given[name], 8, 64)
        values = codes.reshape(64, -1).float() * (1 / scales)
        decoded[name] = values.half().reshape(given[name].shape)
    _check(found, decoded)


def test_errors_are_those_of_what_bitsandbytes_dequantizes(tmp_path: Path) -> None:
    from bitsandbytes.functional import int8_vectorwise_dequant

    stored = tensors_of(quantized_copy(tmp_path / "out", bitsandbytes.output()))
    decoded = {
        f"{name.removesuffix('.SCB')}.weight": int8_vectorwise_dequant(
            stored[f"{name.removesuffix('.SCB')}.weight"], scb
        ).half()
        for name, scb in stored.items()
        if name.endswith(".SCB")
    }
    _check(_measured(bitsandbytes.output()), decoded)


def test_ranks_of_deepspeed_that_share_a_row_have_scales_of_their_own() -> None:
    source = open_source(str(TRAINED))
    one, two = (_measured(deepspeed_int8.output(source, tp_size=degree)) for degree in (1, 2))
    assert one["transformer.h.0.mlp.fc_in.weight"].error_energy > 0
    for name, error in one.items():
        is_shared = name.endswith(("out_proj.weight", "fc_out.weight"))
        assert (two[name].error_energy < error.error_energy) == is_shared
        assert two[name].output_bytes == error.output_bytes + is_shared * 4 * error.shape[0]


@pytest.mark.parametrize(
    "scheme",
    [Moq(), Rows(), Groups(), SymmetricSearch(), ZeroInference(), ZeroInference(bits=4)],
    ids=lambda s: f"{s.name}-{s.bits}",
)
def test_decoded_checkpoints_hold_the_measured_errors(tmp_path: Path, scheme: Scheme) -> None:
    folder = write_decoded(
        Request(source=str(TRAINED), output=tmp_path / "out", degrees=(1,), jobs=2), scheme
    )
    found, stored, given = _measured(scheme), tensors_of(folder), tensors_of(TRAINED)
    assert set(stored) == set(given)
    _check(found, {name: stored[name] for name, e in found.items() if e.decision.is_quantized})
    for name, error in found.items():
        if not error.decision.is_quantized:
            assert torch.equal(stored[name], given[name])


def test_the_worst_comes_first_and_what_stays_comes_last_with_its_reason(tmp_path: Path) -> None:
    output = compressed_tensors.output()
    source = open_source(str(TRAINED))
    found = tensor_errors(source, output, exclude=["*.h.0.*"], jobs=2)
    assert sorted(e.name for e in found) == sorted(source.tensors)
    quantized = [e for e in found if e.decision.is_quantized]
    assert len(quantized) == 18
    assert tuple(quantized) == found[:18]
    errors = [e.relative_error for e in quantized]
    assert errors == sorted(errors, reverse=True)
    for error in found[18:]:
        assert (error.relative_error, error.error_energy, error.num_nonfinite) == (0.0, 0.0, 0)
        assert error.source_bytes == error.output_bytes
        assert error.decision.reason
    # What is said of bytes is what lies on the disk, headers excepted.
    folder = quantize(
        Request(source=str(TRAINED), output=tmp_path / "out", degrees=(1,)), output, exclude=["*.h.0.*"]
    ).output
    stored = sum(t.numel() * t.element_size() for t in tensors_of(folder).values())
    assert totals(found).output_bytes == stored
    assert totals(found).source_bytes == sum(
        t.numel() * t.element_size() for t in tensors_of(TRAINED).values()
    )


def test_progress_reaches_what_was_announced_and_jobs_change_nothing() -> None:
    announced: list[int] = []
    read: list[int] = []
    source = open_source(str(TRAINED))
    one = tensor_errors(source, Moq(), jobs=1, started=announced.append, progress=read.append)
    assert announced == [sum(read)] == [sum(e.source_bytes for e in one if e.decision.is_quantized)]
    assert tensor_errors(source, Moq(), jobs=4) == one


def test_search_beats_moq_with_the_same_bytes() -> None:
    search = _measured(SymmetricSearch())
    better = 0
    for groups in (64, 128):
        for name, error in _measured(Moq(groups=groups)).items():
            if error.decision.is_quantized and error.output_bytes == search[name].output_bytes:
                assert search[name].error_energy < error.error_energy
                better += 1
    assert better == 24


_PEAK = """
import sys
from pathlib import Path
from quantize.quality.tensors import tensor_errors, totals
from quantize.scheme import Moq, SymmetricSearch
from reshard.job import open_source
peak = 0
def look(_):
    global peak
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = max(peak, *(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")))
for scheme in (Moq(), SymmetricSearch(group_size=181)):
    source, budget = open_source(sys.argv[1]), int(sys.argv[2])
    found = tensor_errors(source, scheme, memory_bytes=budget, jobs=2, progress=look)
    assert 0 < totals(found).relative_error < 0.02
print(peak)
"""


def test_memory_stays_within_the_budget_whatever_the_models_size(tmp_path: Path, repository: Path) -> None:
    budget = 320 << 20
    peaks = []
    for layers in (1, 8):  # 25 MB and 200 MB of weights
        folder = wide_model(tmp_path / str(layers), layers)
        command = [sys.executable, "-c", _PEAK, str(folder), str(budget)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert max(peaks) < budget
    assert peaks[1] - peaks[0] < 64 << 20


def _damaged(folder: Path, value: float) -> Path:
    """A one-layer model with one odd weight."""
    made = wide_model(folder, 1)
    with safe_open(made / "model.safetensors", "np") as opened:
        tensors = {name: np.array(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    tensors["transformer.h.0.mlp.fc_in.weight"][3, 5] = value
    save_file(tensors, made / "model.safetensors")
    return made


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_or_counted(tmp_path: Path, value: float) -> None:
    source = open_source(str(_damaged(tmp_path / "model", value)))
    with pytest.raises(QuantizeError, match=r"h\.0\.mlp\.fc_in\.weight is NaN or infinite at \[3, 5\]"):
        tensor_errors(source, compressed_tensors.output(group_size=181), jobs=2)
    allowed = compressed_tensors.output(group_size=181, allow_nonfinite=True)
    found = {e.name: e for e in tensor_errors(source, allowed, jobs=2)}
    odd = found["transformer.h.0.mlp.fc_in.weight"]
    assert odd.num_nonfinite == 1
    assert 0 < odd.relative_error < 0.02
    assert all(e.num_nonfinite == 0 for e in found.values() if e is not odd)


def test_what_cannot_be_quantized_is_said_before_anything_is_read(tmp_path: Path) -> None:
    read: list[int] = []
    with pytest.raises(GroupSizeError, match="96"):
        tensor_errors(open_source(str(TRAINED)), Groups(group_size=96), progress=read.append)
    folder = quantized_copy(tmp_path / "out", compressed_tensors.output())
    with pytest.raises(UnsupportedSourceError, match="quantized already"):
        tensor_errors(open_source(str(folder)), Moq(), progress=read.append)
    assert read == []


def test_a_truncated_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    folder = wide_model(tmp_path / "model", 1)
    source = open_source(str(folder))
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    with pytest.raises(DamagedFileError, match="truncated"):
        tensor_errors(source, Rows(), jobs=2)
