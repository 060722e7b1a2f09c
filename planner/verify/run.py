"""Runs the plain model and the emitted plan in child processes and compares what they say."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from planner.errors import InvalidInputError, ModelError, RuntimeFailure
from planner.graph.store import graph_for
from planner.models.resolve import resolve
from planner.plan import Plan, read
from planner.runtimes.accelerate.emit import DEVICE_MAP_FILE
from planner.runtimes.folder import SCRIPT
from planner.runtimes.registry import emit
from planner.verify.compare import Comparison, compare
from planner.verify.tiers import one_tier_down
from reshard.checkpoint import read_specs

#: Keep a child of the libraries' chatter, and off the network.
_QUIET: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What one child measured of itself.

    Attributes:
        load_s, prefill_s: seconds.
        decode_s: median step, 0 with one token.
        host_peak_bytes: largest resident set.
        gpu_peak_bytes: reserved by the allocator, per GPU.
    """

    load_s: float
    prefill_s: float
    decode_s: float
    host_peak_bytes: int
    gpu_peak_bytes: tuple[int, ...] = ()


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict.

    Attributes:
        passed: the script and the JSON alone both generate what the plain model does.
        on: `cpu` when the tiers were mapped one step down, else `as planned`.
        dtype: everything ran in.
        batch_size, new_tokens: what was generated.
        script: generate.py against the plain model.
        map_alone: `from_pretrained(device_map=…)` with device_map.json against the plain model.
        plain, plan: measured.
        num_resident, num_streamed: modules by how they ran.
        comparable: whether the prediction is for this hardware, in words.
    """

    passed: bool
    on: str
    dtype: str
    batch_size: int
    new_tokens: int
    script: Comparison
    map_alone: Comparison
    plain: Measured
    plan: Measured
    num_resident: int
    num_streamed: int
    comparable: str


def verify(
    folder: Path, checkpoint: Path, *, on: str | None, new_tokens: int | None, batch_size: int | None
) -> VerifyReport:
    """Prove an emitted plan by generating.

    Args:
        folder: an emitted plan.
        checkpoint: a folder with the model's configuration and weights.
        on: `cpu` to map the tiers one step down, None to run as planned.
        new_tokens: tokens to generate; the plan's for None.
        batch_size: sequences; the plan's for None.

    Raises:
        PlanFileError: no plan, or a damaged one.
        ModelError: the checkpoint is of another model.
        CheckpointError: its files are missing or damaged.
        RuntimeFailure: a child process failed.
    """
    plan = read(folder)
    if not (folder / SCRIPT).is_file():
        raise InvalidInputError(f"{folder} has a plan but no {SCRIPT}; write it with `planner plan --out`")
    spec = resolve(str(checkpoint.resolve()))
    if spec.config_sha256 != plan.model.config_sha256:
        raise ModelError(
            f"{checkpoint} is not the model that was planned: its configuration is not {plan.model.name}'s"
        )
    read_specs(checkpoint)
    tokens, batch = new_tokens or plan.workload.new_tokens, batch_size or plan.workload.batch_size
    with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
        work = Path(scratch)
        if on == "cpu":
            plan = one_tier_down(plan)
            folder = work / "plan"
            emit(plan, graph_for(spec), folder)
        return _run(plan, folder, checkpoint, work, on=on, new_tokens=tokens, batch_size=batch)


def _run(
    plan: Plan,
    folder: Path,
    checkpoint: Path,
    work: Path,
    *,
    on: str | None,
    new_tokens: int,
    batch_size: int,
) -> VerifyReport:
    common = [str(checkpoint), "--new-tokens", str(new_tokens)]
    plain_options = [*common, "--auto-class", plan.model.auto_class, "--dtype", plan.workload.dtype]
    plain_options += ["--batch-size", str(batch_size), "--prompt-tokens", str(plan.workload.prompt_tokens)]
    plain_module = [sys.executable, "-m", "planner.verify.plain"]
    plain, alone, script = work / "plain", work / "alone", work / "script"
    for one in (plain, alone, script):
        one.mkdir()
    device = "cpu" if on == "cpu" else "auto"
    _child([*plain_module, *plain_options, "--device", device, "--out", str(plain)], "the plain model", work)
    ids = str(plain / "input_ids.json")
    report, logits = script / "report.json", script / "logits.safetensors"
    argv = [sys.executable, str(folder / SCRIPT), *common, "--input-ids", ids]
    _child([*argv, "--report", str(report), "--logits", str(logits)], "the emitted plan", work)
    map_options = ["--device-map", str(folder / DEVICE_MAP_FILE), "--input-ids", ids, "--out", str(alone)]
    _child([*plain_module, *plain_options, *map_options], "the device map alone", work)
    by_script = _compared(plain, script, plan.workload.dtype)
    by_map = _compared(plain, alone, plan.workload.dtype)
    streamed = sum(p.lives != p.executes for p in plan.placements)
    return VerifyReport(
        passed=by_script.passed and by_map.passed,
        on=on or "as planned",
        dtype=plan.workload.dtype,
        batch_size=batch_size,
        new_tokens=new_tokens,
        script=by_script,
        map_alone=by_map,
        plain=_measured(plain),
        plan=_measured(script),
        num_resident=len(plan.placements) - streamed,
        num_streamed=streamed,
        comparable=(
            f"predicted for {plan.hardware.name}, measured on this machine's CPU: not comparable"
            if on == "cpu"
            else f"predicted for {plan.hardware.name}; comparable if this is one"
        ),
    )


def _compared(plain: Path, other: Path, dtype: str) -> Comparison:
    from safetensors.numpy import load_file

    def logits(folder: Path) -> Any:
        return load_file(folder / "logits.safetensors")["logits"].astype(np.float32)

    return compare(_report(plain)["tokens"], _report(other)["tokens"], logits(plain), logits(other), dtype)


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def _measured(folder: Path) -> Measured:
    report = _report(folder)
    return Measured(
        load_s=report["load_s"],
        prefill_s=report["prefill_s"],
        decode_s=float(np.median(report["decode_s"])) if report["decode_s"] else 0.0,
        host_peak_bytes=report["host_peak_rss_bytes"],
        gpu_peak_bytes=tuple(report.get("gpu_peak_reserved_bytes", ())),
    )


def _child(argv: list[str], what: str, work: Path) -> None:
    """Run a child to its end; its last words become the error."""
    # A child that is killed cannot remove its temporary files; in `work` they go all the same.
    environment = {**os.environ, **_QUIET, "TMPDIR": str(work)}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    if done.returncode == 3:
        raise ModelError(last.removeprefix("generate.py: "))
    how = (
        f"was killed by {signal.Signals(-done.returncode).name}"
        if done.returncode < 0
        else f"failed with status {done.returncode}"
    )
    raise RuntimeFailure(f"{what} {how}: {last}")
