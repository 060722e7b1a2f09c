"""Benchmarks a folder: child processes run its batch sizes, and each row gets a prediction."""

import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from planner.bench.batches import next_batch
from planner.bench.repricing import predicted, repriced
from planner.bench.rows import Measured, Predicted, Row, record_of
from planner.cost.runtime_model import RuntimeModel
from planner.errors import InvalidInputError, PlannerError
from planner.graph.schema import ModuleGraph
from planner.schema.plan import Plan
from planner.schema.workload import Workload
from planner.verification.children import run_child

_LADDER: Final = Path(__file__).with_name("ladder.py")
#: Runtimes whose model can still be used after a batch size that ran out of memory.
_SURVIVING: Final = ("accelerate", "cpu")
_VERSIONS: Final = ("torch", "transformers", "accelerate", "deepspeed")
_OUT_OF_MEMORY: Final = ("out of memory", "OutOfMemory", "can't allocate memory")
_KILLED: Final = "SIGKILL"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to benchmark, and how.

    Attributes:
        name: name for the rows.
        folder: folder with `generate.py`, `generation.py` and `plan.json`.
        plan, graph: the folder's plan, and its model's graph.
        is_predictable: whether the cost model can predict it.
        runtime_model: see `planner.bench.repricing.repriced`.
        checkpoint: folder that the script loads.
        weights: `checkpoint` or `random`.
        batches: requested batch sizes, each at least 1: sequences of all streams together.
        until_oom: whether to search for the largest batch size that runs.
        prompt_tokens, new_tokens: lengths of each sequence.
        repeat: smallest number of measured calls of each batch size; short calls are repeated more often.
        memory_cap_bytes: limit of each GPU's memory, including the CUDA context; None: no limit.
        isolate: whether every batch size runs in a process of its own.
        timeout_s: time limit of each process; None: no limit.
    """

    name: str
    folder: Path
    plan: Plan
    graph: ModuleGraph
    checkpoint: Path
    batches: tuple[int, ...]
    weights: str = "random"
    is_predictable: bool = True
    runtime_model: RuntimeModel | None = None
    until_oom: bool = False
    prompt_tokens: int = 128
    new_tokens: int = 32
    repeat: int = 1
    memory_cap_bytes: int | None = None
    isolate: bool = False
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if not self.batches or any(batch < 1 for batch in self.batches):
            raise InvalidInputError(f"batch sizes must be at least 1, not {list(self.batches)}")


def bench(job: Job, on_row: Callable[[Row], None] = lambda _: None) -> tuple[Row, ...]:
    """Run every batch size; a batch size that fails gives a row, too.

    Args:
        job: what to benchmark, and how.
        on_row: called with each row as soon as it is complete.

    Returns:
        The rows, in ascending order of the batch size.

    Raises:
        InvalidInputError: the plan can no longer be priced on its machine.
    """
    rows: dict[int, Row] = {}
    outcomes: dict[int, bool] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        turn = 0
        while (batch := next_batch(job.batches, outcomes, until_oom=job.until_oom)) is not None:
            turn += 1
            work = Path(scratch) / str(turn)
            work.mkdir()
            for row in _run(job, batch, outcomes, work):
                rows[row.batch_size], outcomes[row.batch_size] = row, row.status == "ok"
                on_row(row)
            if rows[batch].status == "failed":
                break
    return tuple(rows[batch] for batch in sorted(rows))


def _run(job: Job, batch: int, outcomes: dict[int, bool], work: Path) -> list[Row]:
    """Run one process; returns the rows of its batch sizes, among them at least that of `batch`."""
    out, why = work / "rows.jsonl", ""
    batches = (batch,) if job.isolate else tuple(b for b in job.batches if b not in outcomes) or (batch,)
    argv = _argv(job, batches, outcomes, out)
    try:
        run_child(argv, f"{job.name} at batch {batch}", work, timeout_s=job.timeout_s)
    except PlannerError as error:
        why = str(error)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    done = {line["batch"]: line for line in lines if line["status"] != "started"}
    started = [line["batch"] for line in lines if line["status"] == "started"]
    unfinished = [b for b in started if b not in done] or ([batch] if batch not in done else [])
    for b in unfinished:
        done[b] = {"batch": b, "status": _status(why), "said": why or "its process reported no result"}
    return [_row(job, line) for line in done.values()]


def _status(why: str) -> str:
    """Status of a failed process; SIGKILL counts as out of memory, as the OOM killer most likely sent it."""
    is_memory = _KILLED in why or any(words in why for words in _OUT_OF_MEMORY)
    return "out_of_memory" if is_memory else "failed"


def _argv(job: Job, batches: Sequence[int], outcomes: dict[int, bool], out: Path) -> list[str]:
    alone = job.isolate or job.plan.num_ranks > 1
    argv = [sys.executable, str(_LADDER), str(job.folder), str(job.checkpoint), "--out", str(out)]
    argv += ["--batches", ",".join(map(str, batches)), "--repeat", str(job.repeat)]
    argv += ["--prompt-tokens", str(job.prompt_tokens), "--new-tokens", str(job.new_tokens)]
    if not job.isolate:
        argv += ["--outcomes", json.dumps(outcomes), *(["--until-oom"] if job.until_oom else [])]
    if alone or job.plan.runtime not in _SURVIVING:
        argv.append("--stop-at-oom")
    cap, gpu = job.memory_cap_bytes, job.plan.hardware.gpu
    if cap is not None and gpu is not None:
        left = cap - round(gpu.context_bytes.value)
        if left <= 0:
            raise InvalidInputError(f"a memory cap of {cap} bytes is too small for a CUDA context")
        argv += ["--memory-cap", str(left)]
    return argv


def _row(job: Job, line: dict[str, Any]) -> Row:
    workload = Workload(
        batch_size=line["batch"],
        prompt_tokens=job.prompt_tokens,
        new_tokens=job.new_tokens,
        dtype=job.plan.workload.dtype,
    )
    versions = {name: metadata.version(name) for name in _VERSIONS if _is_installed(name)}
    return Row(
        date=datetime.date.today().isoformat(),
        name=job.name,
        plan_sha256=record_of(job.plan).sha256,
        model=job.plan.model.name,
        runtime=job.plan.runtime,
        dtype=job.plan.workload.dtype,
        batch_size=line["batch"],
        prompt_tokens=job.prompt_tokens,
        new_tokens=job.new_tokens,
        weights="random" if job.weights == "random" else "checkpoint",
        memory_cap_bytes=job.memory_cap_bytes,
        status=line["status"],
        said=line.get("said", ""),
        measured=_measured(line) if line["status"] == "ok" else None,
        predicted=_predicted(job, workload),
        versions=versions,
    )


def _predicted(job: Job, workload: Workload) -> Predicted | None:
    if not job.is_predictable:
        return None
    cap = job.memory_cap_bytes
    return predicted(
        *repriced(job.plan, job.graph, workload, memory_cap_bytes=cap, runtime_model=job.runtime_model)
    )


def _measured(line: dict[str, Any]) -> Measured:
    return Measured(
        load_s=line["load_s"],
        prefill_s=line["prefill_s"],
        decode_s=tuple(line["decode_s"]),
        gpu_peak_allocated_bytes=tuple(line["gpu_peak_allocated_bytes"]),
        gpu_peak_reserved_bytes=tuple(line["gpu_peak_reserved_bytes"]),
        host_peak_bytes=line["host_peak_rss_bytes"],
        load_host_peak_bytes=line["load_host_peak_bytes"],
        devices=tuple(line["devices"]),
    )


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
