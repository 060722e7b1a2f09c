"""Runs the plain model and the emitted plan in child processes, and compares their tokens and logits."""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from planner.emission import emit
from planner.errors import InvalidInputError, ModelError
from planner.models.resolve import resolve
from planner.runtimes.accelerate.emit import DEVICE_MAP_FILE
from planner.runtimes.folder import SCRIPT
from planner.schema.plan import Plan, read
from planner.tracing.store import graph_for
from planner.verification.children import run_child
from planner.verification.compare import Comparison, compare
from planner.verification.tiers import one_tier_down
from reshard.checkpoint import read_specs


class MeasuredRun(msgspec.Struct, frozen=True, kw_only=True):
    """Time and memory that a child process measured.

    Attributes:
        load_s, prefill_s: time to load the model, and time of the prefill.
        decode_s: median time of a decode step; 0 when one token was generated.
        host_peak_bytes: peak resident set.
        gpu_peak_bytes: peak memory reserved by the allocator of each GPU.
        offload_files, offload_bytes: number and size of the files of streamed weights, of all ranks.
    """

    load_s: float
    prefill_s: float
    decode_s: float
    host_peak_bytes: int
    gpu_peak_bytes: tuple[int, ...] = ()
    offload_files: int = 0
    offload_bytes: int = 0


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a verification.

    Attributes:
        passed: whether the script, and the device map alone if there is one, match the plain model.
        on: `cpu` when every tier was replaced by the next lower one, else `as planned`.
        dtype: dtype of all runs.
        batch_size, new_tokens: sequences, and generated tokens of each.
        num_ranks: number of the script's processes.
        script: comparison of generate.py with the plain model.
        map_alone: comparison of `from_pretrained(device_map=…)` with the plain model, using device_map.json;
            None for a runtime without device maps.
        plain, plan: measurements of the plain model and of generate.py.
        num_resident, num_streamed: number of modules with resident and with streamed weights.
        comparable: whether measurements and prediction are comparable, in words.
    """

    passed: bool
    on: str
    dtype: str
    batch_size: int
    new_tokens: int
    num_ranks: int
    script: Comparison
    map_alone: Comparison | None
    plain: MeasuredRun
    plan: MeasuredRun
    num_resident: int
    num_streamed: int
    comparable: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One verification.

    Attributes:
        plan, folder: the plan to verify, and its folder.
        checkpoint: checkpoint of the plain model.
        script_input: folder that the script loads: the checkpoint, or shards of it.
        work: folder for the output of the child processes.
        on, new_tokens, batch_size, timeout_s: as in `verify`.
    """

    plan: Plan
    folder: Path
    checkpoint: Path
    script_input: Path
    work: Path
    on: str | None
    new_tokens: int
    batch_size: int
    timeout_s: float | None

    def child(self, argv: list[str], what: str) -> None:
        """Run one child process; with `on` = `cpu` its GPUs are hidden, so that libraries do not use them."""
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.on == "cpu" else {}
        run_child(argv, what, self.work, timeout_s=self.timeout_s, environment=hidden)

    def plain(self, what: str, options: list[str]) -> Path:
        """Generate with transformers alone; returns the output folder."""
        plan, out = self.plan, self.work / what
        out.mkdir()
        sizes = ["--new-tokens", str(self.new_tokens), "--batch-size", str(self.batch_size)]
        sizes += ["--prompt-tokens", str(plan.workload.prompt_tokens)]
        kind = ["--auto-class", plan.model.auto_class, "--dtype", plan.workload.dtype]
        module = [sys.executable, "-m", "planner.verification.plain", str(self.checkpoint)]
        self.child([*module, *kind, *sizes, *options, "--out", str(out)], what)
        return out

    def script(self, what: str, input_ids: str) -> Path:
        """Generate with the emitted script; returns the output folder."""
        out = self.work / what
        out.mkdir()
        reports = ["--report", str(out / "report.json"), "--logits", str(out / "logits.safetensors")]
        options = ["--new-tokens", str(self.new_tokens), "--input-ids", input_ids, *reports]
        self.child([sys.executable, str(self.folder / SCRIPT), str(self.script_input), *options], what)
        return out


def verify(
    folder: Path,
    checkpoint: Path,
    *,
    on: str | None,
    new_tokens: int | None,
    batch_size: int | None,
    shards: Path | None = None,
    timeout_s: float | None = None,
) -> VerifyReport:
    """Verify an emitted plan: generate with it and with the plain model, and compare tokens and logits.

    Args:
        folder: folder of the emitted plan.
        checkpoint: folder with the model's configuration and weights.
        on: `cpu`: run without a GPU, with every tier replaced by the next lower one; None: run as planned.
        new_tokens: tokens to generate for each sequence; None: as in the plan.
        batch_size: number of sequences; None: as in the plan.
        shards: folder of per-rank shards of the checkpoint, which the script loads; None: the script loads
            the checkpoint.
        timeout_s: time limit of each child process; None: no limit.

    Raises:
        PlanFileError: the plan is missing or damaged.
        InvalidInputError: the folder has no script, or `shards` is not a folder.
        ModelError: the checkpoint is of another model, or the shards do not fit the plan.
        CheckpointError: files of the checkpoint are missing or damaged.
        RuntimeFailure: a child process failed, or exceeded the time limit.
    """
    plan = read(folder)
    if not (folder / SCRIPT).is_file():
        raise InvalidInputError(f"{folder} has a plan but no {SCRIPT}; write it with `planner plan --out`")
    if shards is not None and not shards.is_dir():
        raise InvalidInputError(f"{shards} is not a folder; write the shards with `reshard`")
    spec = resolve(str(checkpoint.resolve()))
    if spec.config_sha256 != plan.model.config_sha256:
        raise ModelError(
            f"{checkpoint} is not the model that was planned: its configuration is not {plan.model.name}'s"
        )
    read_specs(checkpoint)
    with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
        work = Path(scratch)
        if on == "cpu":
            plan = one_tier_down(plan)
            folder = work / "plan"
            emit(plan, graph_for(spec), folder)
        return _report_of(
            _Run(
                plan=plan,
                folder=folder,
                checkpoint=checkpoint,
                script_input=shards or checkpoint,
                work=work,
                on=on,
                new_tokens=new_tokens or plan.workload.new_tokens,
                batch_size=batch_size or plan.workload.batch_size,
                timeout_s=timeout_s,
            )
        )


def _report_of(run: _Run) -> VerifyReport:
    """Run the child processes, and compare their outputs."""
    plan = run.plan
    plain = run.plain("the plain model", ["--device", "cpu" if run.on == "cpu" else "auto"])
    input_ids = str(plain / "input_ids.json")
    script = run.script("the emitted plan", input_ids)
    by_script = _compared(plain, script, plan.workload.dtype)
    by_map = None
    device_map = run.folder / DEVICE_MAP_FILE
    if device_map.is_file():
        options = ["--device-map", str(device_map), "--input-ids", input_ids]
        map_alone = run.plain("the device map alone", options)
        by_map = _compared(plain, map_alone, plan.workload.dtype)
    streamed = sum(p.stored_on != p.runs_on for p in plan.placements)
    return VerifyReport(
        passed=by_script.passed and (by_map is None or by_map.passed),
        on=run.on or "as planned",
        dtype=plan.workload.dtype,
        batch_size=run.batch_size,
        new_tokens=run.new_tokens,
        num_ranks=plan.num_ranks,
        script=by_script,
        map_alone=by_map,
        plain=_measured(plain),
        plan=_measured(script),
        num_resident=len(plan.placements) - streamed,
        num_streamed=streamed,
        comparable=(
            f"predicted for {plan.hardware.name}, measured on this machine's CPU: not comparable"
            if run.on == "cpu"
            else f"predicted for {plan.hardware.name}; comparable if this machine is one"
        ),
    )


def _compared(plain: Path, other: Path, dtype: str) -> Comparison:
    from safetensors.numpy import load_file

    def logits(folder: Path) -> Any:
        return load_file(folder / "logits.safetensors")["logits"].astype(np.float32)

    return compare(_report(plain)["tokens"], _report(other)["tokens"], logits(plain), logits(other), dtype)


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def _measured(folder: Path) -> MeasuredRun:
    report = _report(folder)
    return MeasuredRun(
        load_s=report["load_s"],
        prefill_s=report["prefill_s"],
        decode_s=float(np.median(report["decode_s"])) if report["decode_s"] else 0.0,
        host_peak_bytes=report["host_peak_rss_bytes"],
        gpu_peak_bytes=tuple(report.get("gpu_peak_reserved_bytes", ())),
        offload_files=report.get("offload_files", 0),
        offload_bytes=report.get("offload_bytes", 0),
    )
