"""What verification starts: it ends whole, whoever started it, and an error names the process that failed."""

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from planner.errors import ModelError, RuntimeFailure
from planner.runtimes.folder import SHARED
from planner.verification.children import run_child

#: What a script of several ranks reads of its plan before it starts them.
TWO_RANKS = {"execution": {"num_ranks": 2, "num_streams": 1, "main": "cpu"}, "workload": {"dtype": "float32"}}
#: Starts a process in a session of its own, which writes down who it is and outlives its parent.
SPAWN = """
import os, subprocess, sys, time
subprocess.Popen(
    [sys.executable, "-c",
     "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(99)", sys.argv[1]],
    start_new_session=True,
)
while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read():
    time.sleep(0.01)
"""


def script(folder: Path, text: str) -> Path:
    path = folder / "generate.py"
    path.write_text(text)
    return path


def of_two_ranks(folder: Path, text: str) -> list[str]:
    """The command of a script that starts two ranks of itself, as an emitted one does, and runs `text`."""
    for name in SHARED:
        (folder / name).write_bytes(resources.files("planner.runtimes").joinpath(name).read_bytes())
    (folder / "plan.json").write_text(json.dumps(TWO_RANKS))
    start = "import os, sys, time\nfrom generation import launch_ranks, stop\nlaunch_ranks()\n"
    return [sys.executable, str(script(folder, start + text))]


def started_in(work: Path) -> list[str]:
    """Processes, still there, that run_child or one of its children started."""
    marks = {entry.name: entry / "environ" for entry in Path("/proc").glob("[0-9]*")}
    found = []
    for pid, environment in marks.items():
        try:
            if f"TMPDIR={work}".encode() in environment.read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    "ending, words",
    [
        ("", None),
        ("os.kill(os.getpid(), 9)", "the plan was killed by SIGKILL"),
        ("time.sleep(99)", "the plan did not end within 2 s"),
    ],
)
def test_processes_in_other_sessions_end_with_the_child(
    tmp_path: Path, ending: str, words: str | None
) -> None:
    work, note = tmp_path / "work", tmp_path / "pid"
    work.mkdir()
    argv = [sys.executable, str(script(tmp_path, SPAWN + ending)), str(note)]
    if words is None:
        run_child(argv, "the plan", work)
    else:
        with pytest.raises(RuntimeFailure, match=words):
            run_child(argv, "the plan", work, timeout_s=2)
    assert not started_in(work)
    assert note.exists() or "2 s" in (words or "")


def test_an_interrupt_ends_them_too(tmp_path: Path) -> None:
    work, note = tmp_path / "work", tmp_path / "pid"
    work.mkdir()
    path = script(tmp_path, SPAWN + "os.kill(int(sys.argv[2]), 2)\ntime.sleep(99)")
    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, str(path), str(note), str(os.getpid())], "the plan", work)
    assert note.exists()
    assert not started_in(work)


@pytest.mark.parametrize(
    "failing, kind, words",
    [
        ("os.kill(os.getpid(), 9)", RuntimeFailure, "rank 1 of the plan was killed by SIGKILL: working"),
        (
            "print('generate.py: the shard is of another rank', file=sys.stderr); sys.exit(3)",
            ModelError,
            "^the shard is of another rank$",
        ),
    ],
)
def test_an_error_is_that_of_the_rank_that_failed(
    tmp_path: Path, failing: str, kind: type[Exception], words: str
) -> None:
    argv = of_two_ranks(
        tmp_path,
        "print('working', file=sys.stderr, flush=True)\n"
        f"if os.environ['RANK'] == '1':\n    {failing}\n"
        "time.sleep(99)\n",
    )
    with pytest.raises(kind, match=words):
        run_child(argv, "the plan", tmp_path)
    assert not started_in(tmp_path)


def test_a_rank_that_says_why_it_stopped_is_believed(tmp_path: Path) -> None:
    """Others fail because it did, and torchrun may see them first."""
    argv = of_two_ranks(
        tmp_path,
        "if os.environ['RANK'] == '1':\n"
        "    print('generate.py: out of GPU memory at batch 8', file=sys.stderr, flush=True)\n"
        f"    open({str(tmp_path / 'said')!r}, 'w').close()\n    os._exit(4)\n"
        f"while not os.path.exists({str(tmp_path / 'said')!r}):\n    time.sleep(0.01)\n"
        "raise ConnectionError('closed by peer')\n",
    )
    with pytest.raises(RuntimeFailure, match="rank 1 of the plan failed with status 4: out of GPU memory"):
        run_child(argv, "the plan", tmp_path)
    logs = tmp_path / "logs of the plan"
    assert "rank 1 ended with status 4" in (logs / "err").read_text()


def test_the_script_itself_ends_with_the_status_of_the_rank_that_stopped(tmp_path: Path) -> None:
    argv = of_two_ranks(tmp_path, "if os.environ['RANK'] == '1':\n    stop('unfit', 3)\ntime.sleep(99)\n")
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "generate.py: unfit\n" in ended.stderr
    assert "Traceback" not in ended.stderr
