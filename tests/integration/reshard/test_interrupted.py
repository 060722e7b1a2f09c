"""Runs that are killed, interrupted or contradicted: the same command again ends with the same bytes."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

import reshard.run
from reshard.checkpoint import read_file
from reshard.errors import CheckpointError
from reshard.job import Request
from reshard.journal import Journal
from reshard.storage import LocalFolder
from reshard.stream import Digests
from tests.integration.reshard.children import REPOSITORY, contents, llama, made, names, refused, run

_OUTPUT = "out"
_STAGE = ".out.partial"


@pytest.fixture
def source(work: Path) -> Path:
    """A small checkpoint of a dozen tensors."""
    return llama(work / "model", layers=1, hidden=64)


@contextmanager
def started(program: str, *arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """The command with something done to it first, as a process that is stopped at the end if need be."""
    code = f"import reshard.run as run, os, signal\n{program}\nfrom cli.reshard import main\nmain()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def resumed(done: "subprocess.CompletedProcess[str]") -> int:
    return int(json.loads(done.stdout)["resumed"])


# -- SIGKILL ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_replacing", [False, True])
@pytest.mark.parametrize("format_name, stride", [("safetensors", 1), ("megatron", 5)])
def test_killed_at_every_step(
    source: Path, work: Path, format_name: str, stride: int, is_replacing: bool
) -> None:
    """Whatever it was doing, the output is whole or not there, and the same request makes it whole."""
    made(source, "--tp", "2", "--format", format_name, "--output", work / "expected")
    expected = jsoned(contents(work / "expected"))
    arguments = [source, work / "place" / _OUTPUT, "--format", format_name, "--stride", stride]
    before = None
    if is_replacing:
        made(source, "--tp", "4", "--output", work / "before")
        before = jsoned(contents(work / "before"))
        arguments += ["--before", work / "before"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.reshard.stepwise", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) >= 60 // stride
    for result in results:
        killed = result["killed"]["output"]
        assert killed in (before, expected, None), result
        if "after_refusal" in result:
            assert "refused" in result, result
            # What was moved away to make room is back.
            assert result["after_refusal"]["output"] in (before, expected), result
        assert result["finished"] == {"names": [_OUTPUT], "output": expected}, result
        assert "exists" not in result or killed == expected, result
    assert max(r.get("resumed", 0) for r in results) > 1


def jsoned(value: object) -> Any:
    return json.loads(json.dumps(value))


#: A slow disk, and a word when the first byte is about to be moved.
_SLOWLY = """
import time
fill, pwrite = run._fill, os.pwrite
def telling(*arguments):
    print("begun", flush=True)
    return fill(*arguments)
def slow(*arguments):
    time.sleep(0.002)
    return pwrite(*arguments)
run._fill, os.pwrite = telling, slow
"""


def test_killed_at_random_moments(work: Path) -> None:
    """Fifty moments, most of them while bytes are moved; one or four before the run may finish."""
    chance = random.Random(2026)
    source = llama(work / "model", layers=4, hidden=128)
    arguments = (source, "--tp", "2,4", "--jobs", "2", "--output")
    begun_s, copied_s = durations(*arguments, work / "expected")
    expected = contents(work / "expected")
    output = work / "place" / _OUTPUT
    output.parent.mkdir()
    kills = 0
    for count in (1, 4) * 10:
        for _ in range(count):
            # Small batches leave more to be continued with.
            batch = f"run._BATCH_BYTES = {chance.choice((1 << 30, 1 << 18))}"
            with started(_SLOWLY + batch, *arguments, output) as process:
                if chance.random() < 0.25:
                    time.sleep(begun_s * chance.random())
                else:
                    assert process.stdout is not None
                    process.stdout.readline()
                    time.sleep(copied_s * chance.uniform(0.0, 1.05))
                process.kill()
            kills += 1
            assert not output.exists() or contents(output) == expected
        done = run(*arguments, output)
        if done.returncode:
            # The last kill came too late: everything had its name.
            refused(done, "exists")
        assert contents(output) == expected
        assert names(output.parent) == {_OUTPUT}
        shutil.rmtree(output)
    assert kills == 50


def durations(*arguments: str | Path) -> tuple[float, float]:
    """Seconds until bytes are moved, and until all of them are."""
    with started(_SLOWLY, *arguments) as process:
        assert process.stdout is not None
        times = [time.monotonic()]
        process.stdout.readline()
        times.append(time.monotonic())
        process.communicate(timeout=60)
        times.append(time.monotonic())
    assert process.returncode == 0
    return times[1] - times[0], times[2] - times[1]


# -- Ctrl-C, a lost connection, and what comes after -----------------------------------------------------

#: After three tensors somebody presses Ctrl-C.
_PRESS = """
from reshard.journal import Journal
add = Journal.add
seen = []
def pressing(self, tensors):
    add(self, tensors)
    seen.extend(tensors)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGINT)
Journal.add = pressing
run._BATCH_BYTES = 0
"""


def interrupt(*arguments: str | Path) -> None:
    """Press Ctrl-C when three tensors are done."""
    with started(_PRESS, *arguments) as process:
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "reshard: Interrupted.\n")


@pytest.fixture
def expected(source: Path, work: Path) -> dict[str, tuple[int, str]]:
    """What an uninterrupted run of the command that the tests interrupt writes."""
    made(*_arguments(source), work / "expected")
    found = contents(work / "expected")
    shutil.rmtree(work / "expected")
    return found


def _arguments(source: Path) -> tuple[str | Path, ...]:
    return (source, "--tp", "2", "--dtype", "float32", "--jobs", "1", "--output")


def test_ctrl_c_keeps_what_was_done(source: Path, work: Path, expected: dict[str, tuple[int, str]]) -> None:
    interrupt(*_arguments(source), work / _OUTPUT)
    assert names(work) == {"model", _STAGE}
    done = made(*_arguments(source), work / _OUTPUT, "--json")
    report = json.loads(done.stdout)
    assert 3 <= report["resumed"] < report["tensors"]
    assert contents(work / _OUTPUT) == expected
    assert names(work) == {"model", _OUTPUT}


def test_wrong_requests_keep_what_was_done(
    source: Path, work: Path, expected: dict[str, tuple[int, str]]
) -> None:
    output = work / _OUTPUT
    interrupt(*_arguments(source), output)
    kept = contents(work / _STAGE)
    refused(run(source, "--tp", "3", "--output", output), "tp_size=3")
    refused(run(source, "--tp", "2", "--dtype", "int8", "--output", output), "int8")
    refused(run(*_arguments(source), output, "--memory", "1MB"), "--memory")
    refused(run(work / "nowhere", "--tp", "2", "--output", output), "no folder")
    assert contents(work / _STAGE) == kept
    assert resumed(made(*_arguments(source), output, "--json")) >= 3
    assert contents(output) == expected


def test_another_request_begins_anew(source: Path, work: Path) -> None:
    """The journal of another plan is not believed, nor do its files get into the output."""
    interrupt(*_arguments(source), work / _OUTPUT)
    for options in (("--tp", "2"), ("--tp", "4", "--dtype", "float32")):
        done = made(source, *options, "--output", work / _OUTPUT, "--json")
        assert resumed(done) == 0
        made(source, *options, "--output", work / "expected")
        assert contents(work / _OUTPUT) == contents(work / "expected")
        assert names(work) == {"model", "expected", _OUTPUT}
        for name in ("expected", _OUTPUT):
            shutil.rmtree(work / name)


def test_a_source_that_changed_is_read_again(source: Path, work: Path) -> None:
    interrupt(*_arguments(source), work / _OUTPUT)
    shutil.rmtree(source)
    llama(source, layers=1, hidden=64, seed=1)
    done = made(*_arguments(source), work / _OUTPUT, "--json")
    assert resumed(done) == 0
    made(*_arguments(source), work / "expected")
    assert contents(work / _OUTPUT) == contents(work / "expected")


def test_damage_found_while_copying_leaves_nothing(source: Path, work: Path) -> None:
    """Not even what an earlier run had done of it."""
    made(source, "--tp", "2", "--output", work / "tp2")
    arguments = (work / "tp2", "--tp", "4", "--jobs", "1", "--output", work / _OUTPUT)
    interrupt(*arguments)
    file = work / "tp2" / "model-rank-01-of-02.safetensors"
    raw = bytearray(file.read_bytes())
    # A tensor of which each rank has its own part.
    raw[read_file(LocalFolder(file.parent), file.name)[0]["lm_head.weight"].offset_bytes] ^= 1
    file.write_bytes(raw)
    refused(run(*arguments), "bytes were changed")
    assert names(work) == {"model", "tp2"}


def request(source: Path, output: Path) -> Request:
    return Request(source=str(source), output=output, degrees=(2,), dtype="float32", jobs=1)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is a batch."""
    monkeypatch.setattr(reshard.run, "_BATCH_S", 0)


def lose_connection(source: Path, output: Path) -> None:
    """Fail as a remote store does, when half of the bytes were read."""
    counts: list[int] = []
    total = sum(f.stat().st_size for f in source.iterdir())

    def progress(count: int) -> None:
        counts.append(count)
        if sum(counts) > total // 2:
            raise ConnectionError("connection reset")

    with pytest.raises(ConnectionError):
        reshard.run.reshard(request(source, output), progress=progress)


@pytest.mark.usefixtures("small_batches")
def test_what_was_done_is_not_read_again(
    source: Path, work: Path, expected: dict[str, tuple[int, str]]
) -> None:
    lose_connection(source, work / _OUTPUT)
    told: list[int] = []
    totals: list[int] = []
    report = reshard.run.reshard(
        request(source, work / _OUTPUT),
        progress=told.append,
        started=lambda job: totals.append(sum(c.read_bytes for c in job.copies)),
    )
    assert 0 < report.resumed < report.tensors
    assert 0 < report.read_bytes < totals[0]
    # The bar counts what was done before as well.
    assert sum(told) == totals[0]
    assert contents(work / _OUTPUT) == expected


@pytest.mark.usefixtures("small_batches")
def test_a_journal_cut_anywhere_is_believed_as_far_as_it_goes(
    source: Path, work: Path, expected: dict[str, tuple[int, str]]
) -> None:
    lose_connection(source, work / _OUTPUT)
    shutil.copytree(work / _STAGE, work / "kept")
    journal = (work / "kept" / "journal").read_bytes()
    found = []
    for length in [*range(0, len(journal), 97), len(journal) - 1, len(journal)]:
        shutil.copytree(work / "kept", work / _STAGE, dirs_exist_ok=True)
        (work / _STAGE / "journal").write_bytes(journal[:length])
        found.append(reshard.run.reshard(request(source, work / _OUTPUT)).resumed)
        assert contents(work / _OUTPUT) == expected
        shutil.rmtree(work / _OUTPUT)
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, journal.count(b"\n") - 1)


def test_a_line_that_was_cut_does_not_swallow_the_next(work: Path) -> None:
    first, second = (Digests(name=name, source="0" * 64, target="1" * 64) for name in "ab")
    journal = Journal(work)
    journal.begin("plan")
    journal.add([first])
    path = work / "journal"
    path.write_bytes(path.read_bytes()[:-20])
    assert journal.done("plan") == {}
    journal.add([second])
    assert journal.done("plan") == {"b": second}
    journal.finish()
    assert journal.is_finished()


@pytest.mark.parametrize(
    "junk", [b"\0" * 200, b"{}\n", b'{"plan": 7}\n', b"[[[[\n\n\n", b"\xff\n", b'{"\xff"}\n']
)
@pytest.mark.usefixtures("small_batches")
def test_a_damaged_journal_is_not_believed(
    source: Path, work: Path, expected: dict[str, tuple[int, str]], junk: bytes
) -> None:
    lose_connection(source, work / _OUTPUT)
    (work / _STAGE / "journal").write_bytes(junk)
    assert reshard.run.reshard(request(source, work / _OUTPUT)).resumed == 0
    assert contents(work / _OUTPUT) == expected


@pytest.mark.usefixtures("small_batches")
def test_files_that_were_lost_or_cut_are_written_again(
    source: Path, work: Path, expected: dict[str, tuple[int, str]]
) -> None:
    for spoil in (lambda f: f.unlink(), lambda f: f.write_bytes(b"")):
        lose_connection(source, work / _OUTPUT)
        spoil(next((work / _STAGE / "tree").iterdir()))
        assert reshard.run.reshard(request(source, work / _OUTPUT)).resumed == 0
        assert contents(work / _OUTPUT) == expected
        shutil.rmtree(work / _OUTPUT)


def test_a_source_that_changes_while_it_is_read(source: Path, work: Path) -> None:
    def touch(_: int) -> None:
        file = next(source.glob("*.safetensors"))
        file.write_bytes(file.read_bytes())

    with pytest.raises(CheckpointError, match="was changed while it was read"):
        reshard.run.reshard(request(source, work / _OUTPUT), progress=touch)
    assert names(work) == {"model"}


# -- two at once -----------------------------------------------------------------------------------------

#: The run waits, at its first tensor, for somebody to close its standard input.
_WAIT = """
import sys
fill = run._fill
def waiting(*arguments):
    print("begun", flush=True)
    sys.stdin.read()
    return fill(*arguments)
run._fill = waiting
"""


def test_two_runs_at_once(source: Path, work: Path, expected: dict[str, tuple[int, str]]) -> None:
    with started(_WAIT, *_arguments(source), work / _OUTPUT, "--json") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "begun\n"
        kept = contents(work / _STAGE)
        refused(run(*_arguments(source), work / _OUTPUT), "another run is writing")
        refused(run(source, "--tp", "4", "--output", work / _OUTPUT, "--overwrite"), "another run is writing")
        assert contents(work / _STAGE) == kept
        first.communicate(timeout=60)
        assert first.returncode == 0
    assert contents(work / _OUTPUT) == expected
    assert names(work) == {"model", _OUTPUT}


# -- addresses -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_batches")
def test_a_checkpoint_in_a_store(source: Path, work: Path, expected: dict[str, tuple[int, str]]) -> None:
    """The same bytes as from the folder."""
    store = fsspec.filesystem("memory")
    store.put(str(source), "/bucket/model", recursive=True)
    address = "memory://bucket/model"
    given = Request(source=address, output=work / _OUTPUT, degrees=(2,), dtype="float32", jobs=1)
    try:
        reshard.run.reshard(given)
        assert contents(work / _OUTPUT) == expected
        shutil.rmtree(work / _OUTPUT)
    finally:
        store.rm("/bucket", recursive=True)
    with pytest.raises(CheckpointError, match="holds no files"):
        reshard.run.reshard(given)
    assert names(work) == {"model"}
