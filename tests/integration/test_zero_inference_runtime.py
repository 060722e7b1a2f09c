"""ZeRO-Inference from its emitted folder, a tier down: swap files, residency, and the plain model's tokens.

All families, stores and degrees are in `tests/benchmarks/zero_inference_families.py`; here are those that
differ in kind.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from fixtures.train import TRAINED
from planner.emission import emit
from planner.errors import ModelError, RuntimeFailure
from planner.models.resolve import resolve
from planner.runtimes.zero_inference.parameters import parameters, resident
from planner.runtimes.zero_inference.prefetch_excess import excesses
from planner.runtimes.zero_inference.sizes import sizes_for
from planner.schema.plan import Plan, read
from planner.tracing.store import graph_for
from planner.verification.children import run_child
from planner.verification.run import VerifyReport, verify
from tests.integration.zero_inference_cases import plan_for, save_wide, swapped_parts, tier_down

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 400

needs_async_io = pytest.mark.skipif(
    shutil.which("g++") is None or not Path("/usr/include/libaio.h").exists(),
    reason="NVMe offload needs libaio-dev and g++, which are not here",
)


def proved(plan: Plan, checkpoint: Path, folder: Path, *, new_tokens: int = 6) -> VerifyReport:
    emit(plan, graph_for(resolve(str(checkpoint))), folder)
    report = verify(folder, checkpoint, on="cpu", new_tokens=new_tokens, batch_size=None, timeout_s=TIMEOUT_S)
    assert report.passed, report
    assert report.num_ranks == plan.num_ranks
    assert report.script.num_tokens > 0
    return report


def test_the_trained_model_over_two_ranks_says_the_same(tmp_path: Path) -> None:
    """In float16, which no CPU's configuration takes; three sequences, so that one rank repeats one."""
    plan = plan_for(TRAINED, store="cpu", num_ranks=2, kept=3, dtype="float16", batch_size=3)
    report = proved(plan, TRAINED, tmp_path / "plan", new_tokens=24)
    assert report.script.num_tokens == 3 * 24
    assert report.plan.offload_files == 0


@needs_async_io
@pytest.mark.parametrize("family, num_ranks, kept", [("opt", 1, 3), ("t5", 2, 2)])
def test_weights_come_from_files(family: str, num_ranks: int, kept: int, tmp_path: Path) -> None:
    checkpoint = save_wide(family, tmp_path / family)
    plan = plan_for(checkpoint, store="disk", num_ranks=num_ranks, kept=kept)
    report = proved(plan, checkpoint, tmp_path / "plan")
    if num_ranks == 1:
        # Bit for bit; two ranks multiply smaller batches, which sum in another order.
        assert report.script.logit_error == 0.0
    parts = swapped_parts(plan, checkpoint)
    assert len(parts) >= 8
    assert report.plan.offload_files == num_ranks * len(parts)
    assert report.plan.offload_bytes == num_ranks * sum(parts)


@pytest.mark.parametrize(
    "store, weight_bits",
    [("cpu", None), ("cpu", 8), ("cpu", 4), pytest.param("disk", None, marks=needs_async_io)],
)
def test_exactly_what_the_plan_keeps_stays(store: str, weight_bits: int | None, tmp_path: Path) -> None:
    checkpoint = save_wide("gptj", tmp_path / "gptj")
    dtype = "float32" if weight_bits is None else "float16"
    plan = plan_for(checkpoint, store=store, kept=3, dtype=dtype, weight_bits=weight_bits)
    folder = tier_down(plan, checkpoint, tmp_path / "plan")
    graph = graph_for(resolve(str(checkpoint)))
    kept = resident(read(folder), graph)
    matrices = {one.fqn for one in parameters(graph) if not one.is_vector}
    assert matrices - kept
    assert matrices & kept
    there = parameters_there(folder, checkpoint, tmp_path)
    for moment in there["whole"]:
        assert set(moment) == kept
    # What stays on the device is as large there as the plan says, packed where it is quantized.
    by_module = {p.module: p.num_bytes for p in plan.placements if p.stored_on == p.runs_on and p.num_bytes}
    itemsize = 2 if weight_bits else 4
    vectors = {one.fqn: one.num_elements * itemsize for one in parameters(graph) if one.is_vector}
    measured = {
        module: sum(size for name, size in there["resident"].items() if name.startswith(f"{module}."))
        for module in by_module
    }
    assert measured == by_module
    inside = tuple(f"{module}." for module in by_module)
    outside = {name: size for name, size in there["resident"].items() if not name.startswith(inside)}
    assert outside == {name: size for name, size in vectors.items() if not name.startswith(inside)}


def parameters_there(folder: Path, checkpoint: Path, work: Path) -> dict[str, Any]:
    """What the script of that name says."""
    script, out = ROOT / "tests/integration/zero_inference_residency.py", work / "there.json"
    (work / "offload").mkdir()
    argv = [sys.executable, str(script), str(folder), str(checkpoint), str(work / "offload"), str(out)]
    run_child(argv, "the emitted plan", work, timeout_s=TIMEOUT_S)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("family, activation", [("gptj", "mlp.act"), ("opt", "activation_fn")])
def test_no_more_is_there_than_the_law_says(family: str, activation: str, tmp_path: Path) -> None:
    """With a head so large that DeepSpeed, which brings it as the next matrix, goes far beyond its limits."""
    checkpoint = save_wide(family, tmp_path / family, vocab_size=8192)
    folder = tier_down(plan_for(checkpoint, store="cpu"), checkpoint, tmp_path / "plan")
    graph = graph_for(resolve(str(checkpoint)))
    sizes = sizes_for(graph)
    allowed = dict.fromkeys((node.name for node in graph.nodes), sizes.max_live)
    for one in excesses(graph, sizes):
        allowed[one.node.name] = max(allowed[one.node.name], sizes.max_live + one.num_elements)
    held = parameters_there(folder, checkpoint, tmp_path)["held"]
    assert {name: held[name] for name in allowed if held[name] > allowed[name]} == {}
    last = [name for name in held if name.endswith(activation)][-1]
    assert held[last] == allowed[last] > sizes.max_live


@pytest.mark.parametrize("damage", ["missing", "mismatched"])
def test_another_models_weights_are_refused(damage: str, tmp_path: Path) -> None:
    name = "transformer.h.1.mlp.fc_in.weight"
    weights = load_file(TRAINED / "model.safetensors")
    weights |= {name: weights[name][:-1].copy()}
    if damage == "missing":
        del weights[name]
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_bytes((TRAINED / "config.json").read_bytes())
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    folder = tier_down(plan_for(TRAINED, store="cpu", dtype="float32"), TRAINED, tmp_path / "plan")
    argv = [sys.executable, str(folder / "generate.py"), str(checkpoint), "--prompt-tokens", "4"]
    with pytest.raises(ModelError, match=name):
        run_child(argv, "the emitted plan", tmp_path, timeout_s=TIMEOUT_S)


@needs_async_io
def test_a_part_that_is_not_on_the_disk_is_noticed(tmp_path: Path) -> None:
    """With a larger aio block nothing swaps, and every token would be right all the same."""
    checkpoint = save_wide("llama", tmp_path / "llama")
    folder = tier_down(plan_for(checkpoint, store="disk"), checkpoint, tmp_path / "plan")
    script = folder / "generate.py"
    script.write_text(script.read_text().replace('config["aio"]["block_size"])', "2**18)"))
    config = json.loads((folder / "ds_config.json").read_text())
    config["aio"]["block_size"] = 2**26
    (folder / "ds_config.json").write_text(json.dumps(config))
    argv = [sys.executable, str(script), str(checkpoint), "--prompt-tokens", "4", "--new-tokens", "2"]
    with pytest.raises(RuntimeFailure, match=r"partitions should be files in .*, and 0 are"):
        run_child(argv, "the emitted plan", tmp_path, timeout_s=TIMEOUT_S)
