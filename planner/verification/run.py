"""Runs the plain model and the emitted plan in child processes and compares what they say."""

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
    """What one child measured of itself.

    Attributes:
        load_s, prefill_s: seconds.
        decode_s: median step, 0 with one token.
        host_peak_bytes: largest resident set.
        gpu_peak_bytes: reserved by the allocator, per GPU.
        offload_files, offload_bytes: written to the disk to stream weights from, by all ranks.
    """

    load_s: float
    prefill_s: float
    decode_s: float
    host_peak_bytes: int
    gpu_peak_bytes: tuple[int, ...] = ()
    offload_files: int = 0
    offload_bytes: int = 0


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict.

    Attributes:
        passed: the script, and the JSON alone where there is one, generate what the plain model does.
        on: `cpu` when the tiers were mapped one step down, else `as planned`.
        dtype: everything ran in.
        batch_size, new_tokens: what was generated.
        num_ranks: processes that the script ran as.
        script: generate.py against the plain model.
        map_alone: `from_pretrained(device_map=…)` with device_map.json against the plain model; None for
            a runtime that takes no device map.
        plain, plan: measured.
        num_resident, num_streamed: modules by how they ran.
        comparable: whether the prediction is for this hardware, in words.
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
        plan, folder: what is proved.
        checkpoint: of the plain model.
        given: what the script loads: the checkpoint, or what was cut from it.
        work: for what the children write.
        on, new_tokens, batch_size, timeout_s: as asked.
    """

    plan: Plan
    folder: Path
    checkpoint: Path
    given: Path
    work: Path
    on: str | None
    new_tokens: int
    batch_size: int
    timeout_s: float | None

    def child(self, argv: list[str], what: str) -> None:
        """Run one child; on the CPU it sees no GPU, which the libraries would take otherwise."""
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.on == "cpu" else {}
        run_child(argv, what, self.work, timeout_s=self.timeout_s, environment=hidden)

    def plain(self, what: str, options: list[str]) -> Path:
        """Generate with transformers alone; the folder that it wrote."""
        plan, out = self.plan, self.work / what
        out.mkdir()
        sizes = ["--new-tokens", str(self.new_tokens), "--batch-size", str(self.batch_size)]
        sizes += ["--prompt-tokens", str(plan.workload.prompt_tokens)]
        kind = ["--auto-class", plan.model.auto_class, "--dtype", plan.workload.dtype]
        module = [sys.executable, "-m", "planner.verification.plain", str(self.checkpoint)]
        self.child([*module, *kind, *sizes, *options, "--out", str(out)], what)
        return out

    def script(self, what: str, input_ids: str) -> Path:
        """Generate with the emitted script; the folder that it wrote."""
        out = self.work / what
        out.mkdir()
        reports = ["--report", str(out / "report.json"), "--logits", str(out / "logits.safetensors")]
        options = ["--new-tokens", str(self.new_tokens), "--input-ids", input_ids, *reports]
        self.child([sys.executable, str(self.folder / SCRIPT), str(self.given), *options], what)
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
    """Prove an emitted plan by generating.

    Args:
        folder: an emitted plan.
        checkpoint: a folder with the model's configuration and weights.
        on: `cpu` to map the tiers one step down, None to run as planned.
        new_tokens: tokens to generate; the plan's for None.
        batch_size: sequences; the plan's for None.
        shards: what was cut from the checkpoint for the plan's ranks; the script loads it. None: the script
            loads the checkpoint too.
        timeout_s: longest time of each child; None: no limit.

    Raises:
        PlanFileError: no plan, or a damaged one.
        InvalidInputError: no script beside it, or no folder of shards.
        ModelError: the checkpoint is of another model, or the shards do not fit the plan.
        CheckpointError: its files are missing or damaged.
        RuntimeFailure: a child process failed, or took too long.
    """
    plan = read(folder)
    if not (folder / SCRIPT).is_file():
        raise InvalidInputError(f"{folder} has a plan but no {SCRIPT}; write it with `planner plan --out`")
    if shards is not None and not shards.is_dir():
        raise InvalidInputError(f"{shards} is no folder; cut the checkpoint with `reshard`")
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
                given=shards or checkpoint,
                work=work,
                on=on,
                new_tokens=new_tokens or plan.workload.new_tokens,
                batch_size=batch_size or plan.workload.batch_size,
                timeout_s=timeout_s,
            )
        )


def _report_of(run: _Run) -> VerifyReport:
    """Run the children, and compare what they wrote."""
    plan = run.plan
    plain = run.plain("the plain model", ["--device", "cpu" if run.on == "cpu" else "auto"])
    input_ids = str(plain / "input_ids.json")
    script = run.script("the emitted plan", input_ids)
    by_script = _compared(plain, script, plan.workload.dtype)
    by_map = None
    device_map = run.folder / DEVICE_MAP_FILE
    if device_map.is_file():
        options = ["--device-map", str(device_map), "--input-ids", input_ids]
        alone = run.plain("the device map alone", options)
        by_map = _compared(plain, alone, plan.workload.dtype)
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
