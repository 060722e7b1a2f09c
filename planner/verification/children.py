"""Runs a child process and ends all processes that it started; its last output becomes the error message.

A plan with several ranks starts processes in sessions of their own, which a signal to the child's process
group does not reach. They are identified by their environment: `TMPDIR` is a folder of this run alone.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from planner.errors import ModelError, RuntimeFailure
from planner.runtimes.folder import SCRIPT

#: Environment that keeps the libraries from printing progress and from using the network.
_QUIET: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
#: Prefix of a script's own error messages, and its exit status when the checkpoint does not fit the plan.
_SENTENCE: Final = f"{SCRIPT}: "
_UNFIT: Final = 3
#: Time that processes have to end after a signal.
_GRACE_S: Final = 10.0
_POLL_S: Final = 0.05
#: Message of a script with several ranks about each failed rank.
_FAILED_RANK: Final = re.compile(r"^rank (\d+) ended with status (-?\d+)$", re.MULTILINE)


def run_child(
    argv: list[str],
    what: str,
    work: Path,
    *,
    timeout_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command to its end, then end all processes that it has started.

    Args:
        argv: the command with its arguments.
        what: name of the run in error messages.
        work: an existing folder that only this run uses, for temporary files and logs.
        timeout_s: time limit; None: no limit.
        environment: environment variables in addition to those of this process.

    Raises:
        ModelError: the child reports that the checkpoint does not fit.
        RuntimeFailure: the child failed otherwise, was killed, or exceeded the time limit.
    """
    logs = work / f"logs of {what}"
    logs.mkdir()
    # torchrun reads options from PET_* variables; these redirect the output of each rank to its own file.
    variables = {**os.environ, **_QUIET, "TMPDIR": str(work), "PET_REDIRECTS": "3", "PET_LOG_DIR": str(logs)}
    with (logs / "out").open("wb") as out, (logs / "err").open("wb") as err:
        child = None
        try:
            # Inside `try`, because an interrupt may arrive after the start and before the assignment.
            child = subprocess.Popen(argv, stdout=out, stderr=err, env={**variables, **(environment or {})})
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RuntimeFailure(f"{what} did not end within {timeout_s:g} s") from None
        finally:
            _end_all(work)
            if child is not None:
                child.kill()
                child.wait()
    if status:
        raise _failure(what, status, logs)


def _end_all(work: Path) -> None:
    """End every process of this run that still exists."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _GRACE_S
        for pid in _alive(work):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        while time.monotonic() < deadline and _alive(work):
            time.sleep(_POLL_S)


def _alive(work: Path) -> list[int]:
    """Ids of the processes with this run's `TMPDIR`; the environment of an ended process is empty."""
    mark = f"TMPDIR={work}".encode()
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids


def _failure(what: str, status: int, logs: Path) -> Exception:
    """The error that states which process failed, how, and its last output."""
    own = _lines(logs / "err")
    ranks = {int(path.parent.name): _lines(path) for path in logs.glob("*/attempt_*/[0-9]*/stderr.log")}
    statuses = {
        int(rank): int(code) for rank, code in _FAILED_RANK.findall("\n".join(own)) if int(rank) in ranks
    }
    if statuses:
        # The first rank that failed, in order of time. Ranks with an error message of the script come first,
        # ranks that were ended by SIGTERM last.
        rank = min(statuses, key=lambda rank: (not _messages(ranks[rank]), statuses[rank] == -signal.SIGTERM))
        own, status, what = ranks[rank], statuses[rank], f"rank {rank} of {what}"
    messages = _messages(own)
    last = messages[-1] if messages else own[-1] if own else "it printed nothing"
    if status == _UNFIT:
        return ModelError(last)
    if status < 0:
        return RuntimeFailure(f"{what} was killed by {signal.Signals(-status).name}: {last}")
    return RuntimeFailure(f"{what} failed with status {status}: {last}")


def _messages(lines: list[str]) -> list[str]:
    """The error messages that the script itself printed."""
    return [line.removeprefix(_SENTENCE) for line in lines if line.startswith(_SENTENCE)]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
