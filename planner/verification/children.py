"""Runs a child to its end, and ends whatever it started; its last words become the error.

A plan of several ranks starts processes in sessions of their own, so a signal to the child's group does not
reach them. They are known by their environment instead: `TMPDIR` is a folder made for one verification.
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

#: Keep a child of the libraries' chatter, and off the network.
_QUIET: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
#: What a script says when it stops by itself, and the status when the checkpoint does not fit.
_SENTENCE: Final = f"{SCRIPT}: "
_UNFIT: Final = 3
#: How long processes may take to end by themselves.
_GRACE_S: Final = 10.0
_POLL_S: Final = 0.05
#: What a script of several ranks says of each that failed.
_FAILED_RANK: Final = re.compile(r"^rank (\d+) ended with status (-?\d+)$", re.MULTILINE)


def run_child(
    argv: list[str],
    what: str,
    work: Path,
    *,
    timeout_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command, and leave none of the processes that it starts behind.

    Args:
        argv: the command.
        what: how an error calls it.
        work: an existing folder of this run alone, for its temporary files.
        timeout_s: after so long everything is ended; None: never.
        environment: variables besides this process's own.

    Raises:
        ModelError: the child says that the checkpoint does not fit.
        RuntimeFailure: it failed otherwise, was killed, or took too long.
    """
    logs = work / f"logs of {what}"
    logs.mkdir()
    # torchrun takes its options from PET_*: what every rank says goes into a file of its own.
    variables = {**os.environ, **_QUIET, "TMPDIR": str(work), "PET_REDIRECTS": "3", "PET_LOG_DIR": str(logs)}
    with (logs / "out").open("wb") as out, (logs / "err").open("wb") as err:
        child = None
        try:
            # Within, because an interrupt may come when it runs and is not yet known here.
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
    """End every process of this run that is still there."""
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
    """Processes that were started with this run's folder; one that has ended has no environment any more."""
    mark = f"TMPDIR={work}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _failure(what: str, status: int, logs: Path) -> Exception:
    """The error that says which process failed, how, and its last words."""
    own = _lines(logs / "err")
    ranks = {int(path.parent.name): _lines(path) for path in logs.glob("*/attempt_*/[0-9]*/stderr.log")}
    statuses = {
        int(rank): int(code) for rank, code in _FAILED_RANK.findall("\n".join(own)) if int(rank) in ranks
    }
    if statuses:
        # In order of time. A rank that says why it stopped knows best; one that was told to end knows least.
        rank = min(statuses, key=lambda rank: (not _said(ranks[rank]), statuses[rank] == -signal.SIGTERM))
        own, status, what = ranks[rank], statuses[rank], f"rank {rank} of {what}"
    said = _said(own)
    last = said[-1] if said else own[-1] if own else "it said nothing"
    if status == _UNFIT:
        return ModelError(last)
    if status < 0:
        return RuntimeFailure(f"{what} was killed by {signal.Signals(-status).name}: {last}")
    return RuntimeFailure(f"{what} failed with status {status}: {last}")


def _said(lines: list[str]) -> list[str]:
    """The sentences of a script that stopped by itself."""
    return [line.removeprefix(_SENTENCE) for line in lines if line.startswith(_SENTENCE)]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
