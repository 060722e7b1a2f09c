"""Runs that meet a full disk, one of its own. Run as a script in a user and mount namespace (`unshare -rm`).

What every run said, and what stood on the disk afterwards, is printed as JSON.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.reshard.children import REPOSITORY, contents, names, run

#: Waits, before the first byte is moved, for somebody to close standard input. The space is not reserved, as
#: on filesystems that cannot do it.
_WAIT = """
import os, sys
import reshard.run as run
fill = run._fill
def waiting(*arguments):
    print("begun", flush=True)
    sys.stdin.read()
    return fill(*arguments)
run._fill = waiting
run._BATCH_BYTES = 0
os.posix_fallocate = lambda *_: None
from cli.reshard import main
main()
"""


@contextmanager
def disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A disk of `size_bytes` at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def resize(folder: Path, size_bytes: int) -> None:
    """Make the disk larger or smaller."""
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(folder)], check=True)


def seen(done: "subprocess.CompletedProcess[str]", folder: Path) -> dict[str, Any]:
    """What a run said and left."""
    output = folder / "out"
    return {
        "status": done.returncode,
        "stdout": done.stdout,
        "stderr": done.stderr,
        "names": sorted(names(folder)),
        "output": contents(output) if output.exists() else None,
    }


def too_small(source: str, folder: Path, size_bytes: int) -> list[dict[str, Any]]:
    """A disk that is too small by far, one that lacks the last pages, and one that is full already."""
    found = []
    for size in (size_bytes // 2, size_bytes, 4096):
        with disk(folder / str(size), size) as place:
            found.append(seen(run(source, "--tp", "2", "--output", place / "out"), place))
            resize(place, 4 * size_bytes)
            found.append(seen(run(source, "--tp", "2", "--output", place / "out"), place))
    return found


def filled_meanwhile(source: str, folder: Path, size_bytes: int) -> list[dict[str, Any]]:
    """Somebody else fills the disk while bytes are moved; then there is room again."""
    arguments = [source, "--tp", "2", "--jobs", "1", "--output"]
    with disk(folder / "filled", 4 * size_bytes) as place:
        command = [sys.executable, "-c", _WAIT, *arguments, str(place / "out")]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            used = sum(f.stat().st_blocks * 512 for f in place.rglob("*"))
            resize(place, used + size_bytes // 2)
            output, errors = process.communicate()
        found = [seen(subprocess.CompletedProcess(command, process.returncode, output, errors), place)]
        resize(place, 4 * size_bytes)
        found.append(seen(run(*arguments, place / "out", "--json"), place))
    return found


def main() -> None:
    """Usage: SOURCE FOLDER SIZE_BYTES; the last is what a run writes."""
    source, folder, size_bytes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    found = {
        "too_small": too_small(source, folder, size_bytes),
        "filled": filled_meanwhile(source, folder, size_bytes),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
