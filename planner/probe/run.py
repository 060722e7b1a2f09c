"""Measures this machine, each part in a child process; the parts run one after another."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from planner.errors import PlannerError
from planner.probe.findings import Findings
from planner.probe.parts import host
from planner.verification.children import run_child

#: Time limit of each part. All parts together normally take less than a minute.
TIMEOUT_S: Final = 120.0
_CHILD: Final = "planner.probe.child"
_QUERY: Final = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
_SMI_S: Final = 20.0
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_NONE: Final = frozenset({"", "-1", "NoDevFiles"})
_READER: Final = "planner.probe.prefetch"
#: With this many cores or fewer there is no prefetching, which would disturb the measurement.
_FEW_CORES: Final = 2


def probe(
    *, disk_folder: Path | None, on_part: Callable[[str], None] = lambda _: None, timeout_s: float = TIMEOUT_S
) -> Findings:
    """Measure every part of this machine.

    Args:
        disk_folder: folder on the disk to measure; None: no disk is measured.
        on_part: called before each part with its name in words.
        timeout_s: time limit of each part.

    Returns:
        The findings of all parts. A part that failed is named in `missing`; no error is raised.
    """
    findings = Findings()
    findings.attempt("the host's cores and memory", host.measure)
    cores = int(findings.facts.get("num_cores", 1))
    with findings.clocked("the driver's list of GPUs"):
        used = used_gpu_bytes()
    with tempfile.TemporaryDirectory(prefix="probe-") as scratch:
        run = _Parts(findings=findings, work=Path(scratch), on_part=on_part, timeout_s=timeout_s)
        if not used:
            findings.missing.append("no GPU is visible, so GPUs and links were not measured")
        else:
            with reading_ahead(wanted=cores > _FEW_CORES):
                used_by_others = used[first_visible(len(used))]
                run.part("the GPU and its links", "gpu", {"used_by_others_bytes": used_by_others})
        has_gpu = "gpu_name" in findings.facts
        run.part("the host's own work", "overheads", {"device": "cuda" if has_gpu else "cpu"})
        run.part("the processor", "cpu", {"num_cores": cores})
        if disk_folder is not None:
            run.part("the disk", "disk", {"folder": str(disk_folder)})
        else:
            findings.missing.append("the disk was not measured, as requested")
        num_gpus = int(findings.facts.get("num_gpus", 0))
        if num_gpus > 1:
            ranks = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_gpus}")
            run.part("all-reduce over all GPUs", "collectives", {"backend": "nccl"}, launcher=ranks)
            findings.facts["fabric_kind"] = _fabric_kind()
    return findings


class _Parts:
    """Runs parts in child processes and collects their findings."""

    def __init__(
        self, *, findings: Findings, work: Path, on_part: Callable[[str], None], timeout_s: float
    ) -> None:
        self.findings, self.work, self.on_part, self.timeout_s = findings, work, on_part, timeout_s
        self.seconds = findings.series.setdefault("seconds that each part took", {})

    def part(self, what: str, name: str, options: dict[str, Any], *, launcher: Sequence[str] = ()) -> None:
        """Run one part; a failure of its process becomes a sentence in `missing`."""
        self.on_part(what)
        start = time.perf_counter()
        out = self.work / f"{name}.json"
        argv = [sys.executable, *launcher, "-m", _CHILD, name, str(out), json.dumps(options)]
        try:
            run_child(argv, f"measuring {what}", self.work, timeout_s=self.timeout_s)
            self.findings.merge(msgspec.json.decode(out.read_bytes(), type=Findings))
        except (PlannerError, OSError, msgspec.DecodeError) as error:
            self.findings.missing.append(f"{what} could not be measured: {error}")
        self.seconds[what] = time.perf_counter() - start


@contextmanager
def reading_ahead(*, wanted: bool) -> Iterator[None]:
    """During the `with` block, a low-priority child process reads the files that the next part imports."""
    if not wanted:
        yield
        return
    # Without a visible GPU the child cannot create a CUDA context, whose memory would be measured.
    without_gpu = {**os.environ, _VISIBLE: ""}
    argv = [sys.executable, "-m", _READER]
    null = subprocess.DEVNULL
    child = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, env=without_gpu)
    try:
        yield
    finally:
        child.kill()
        child.wait()


def used_gpu_bytes() -> list[int]:
    """Device memory in use on each GPU before the measurement, in the driver's order.

    torch may see fewer GPUs than the driver, or none; the part that measures them reports that. When
    `nvidia-smi` is missing or fails, the result has a zero for each GPU that torch sees.
    """
    if _hidden():
        return []
    if shutil.which(_QUERY[0]) is None:
        return _count_by_torch()
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_SMI_S, check=True)
        return [int(line) * 2**20 for line in done.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return _count_by_torch()


def _hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every GPU: the list ends at the first invalid entry."""
    return os.environ.get(_VISIBLE, "0").partition(",")[0].strip() in _NONE


def first_visible(count: int) -> int:
    """The driver's index of the GPU that is device 0 under CUDA_VISIBLE_DEVICES, out of `count` GPUs."""
    first = os.environ.get(_VISIBLE, "").partition(",")[0].strip()
    return int(first) if first.isdigit() and int(first) < count else 0


def _count_by_torch() -> list[int]:
    """A zero for each GPU that torch sees; a child process counts them, so this one has no CUDA context."""
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    count = int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else 0
    return [0] * count


def _fabric_kind() -> str:
    """`nvlink` when the driver lists active links between GPUs, else `pcie`."""
    try:
        done = subprocess.run(
            ("nvidia-smi", "nvlink", "--status"), capture_output=True, text=True, timeout=_SMI_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return "pcie"
    return "nvlink" if "GB/s" in done.stdout else "pcie"
