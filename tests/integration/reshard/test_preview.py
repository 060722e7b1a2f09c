"""A dry run writes nothing, not even to a temporary folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.reshard.children import REPOSITORY, contents, llama, names

#: Tells on standard error of every call of the interpreter that changes a file.
_WATCHED = """
import os, sys
def watch(event, arguments):
    if event == "open":
        _, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) and arguments[0] != os.devnull:
            print("CHANGES", event, arguments[0], file=sys.stderr)
    elif "torchinductor" in str(arguments[0]):
        pass  # torch makes a folder for its compiler, whatever it is used for
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "tempfile.mkdtemp"):
        print("CHANGES", event, arguments, file=sys.stderr)
from cli.reshard import main
sys.addaudithook(watch)
main()
"""


def watched(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", _WATCHED, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("format_name", ["safetensors", "megatron"])
def test_nothing_is_written(work: Path, format_name: str) -> None:
    source = llama(work / "model", layers=1, hidden=64)
    arguments = (source, "--tp", "1,2", "--format", format_name, "--output", work / "out", "--json")
    before = contents(work)
    done = watched(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "CHANGES" not in done.stderr
    assert contents(work) == before
    assert names(work) == {"model"}
    # What it says is what a run writes, and a run is seen to write.
    planned = {f["file"]: f["size_bytes"] for f in json.loads(done.stdout)["files"]}
    assert "CHANGES" in watched(*arguments).stderr
    written = contents(work / "out")
    assert {name: written[name][0] for name in planned} == planned
