"""Disks without room: refused before, or stopped in the middle and continued when there is room again."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.reshard.children import CONFIG, REPOSITORY, contents, llama, made, names, refused, run


@pytest.fixture
def source(work: Path) -> Path:
    """A small checkpoint of a dozen tensors."""
    return llama(work / "model", layers=1, hidden=128)


def written_bytes(folder: Path) -> int:
    return sum(size for size, _ in contents(folder).values())


def jsoned(value: object) -> Any:
    return json.loads(json.dumps(value))


def on_small_disks(source: Path, work: Path, size_bytes: int) -> dict[str, list[dict[str, Any]]]:
    """What `small_disk` saw; skips where a process may not mount a disk of its own."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    (work / "disks").mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    trial = [*namespace, "mount", "-t", "tmpfs", "none", str(work / "disks")]
    allowed = subprocess.run(trial, capture_output=True, text=True)
    if allowed.returncode:
        pytest.skip(f"a disk cannot be mounted in a namespace: {allowed.stderr.strip()}")
    script = [sys.executable, "-m", "tests.integration.reshard.small_disk"]
    done = subprocess.run(
        [*namespace, *script, str(source), str(work / "disks"), str(size_bytes)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return found


def test_disks_that_are_or_become_full(source: Path, work: Path) -> None:
    made(source, "--tp", "2", "--output", work / "expected")
    expected = jsoned(contents(work / "expected"))
    found = on_small_disks(source, work, written_bytes(work / "expected"))
    by_far, after_by_far, by_a_page, after_by_a_page, full, after_full = found["too_small"]
    for refusal in (by_far, by_a_page, full):
        sentence(refusal)
        # Shards that were reserved to the last byte are kept where only the small files found no room.
        is_kept = "what was done is kept" in refusal["stderr"]
        assert refusal["names"] == [".out.partial"] * is_kept
    assert by_far["names"] == full["names"] == []
    size = written_bytes(work / "expected") / 1e6
    assert f"MB free, but {size:.2f} MB would be written" in by_far["stderr"]
    assert "nothing was written" in full["stderr"]
    for success in (after_by_far, after_by_a_page, after_full):
        assert (success["status"], success["names"], success["output"]) == (0, ["out"], expected)
    stopped, continued = found["filled"]
    sentence(stopped)
    assert "No space left on device" in stopped["stderr"]
    assert "what was done is kept" in stopped["stderr"]
    assert stopped["names"] == [".out.partial"]
    assert (continued["status"], continued["names"], continued["output"]) == (0, ["out"], expected)
    report = json.loads(continued["stdout"])
    assert 0 < report["resumed"] < report["tensors"]


def sentence(found: dict[str, Any]) -> None:
    refused(subprocess.CompletedProcess([], found["status"], found["stdout"], found["stderr"]))
    assert found["output"] is None


#: Files may not become longer than a third of what is written, once their space was not reserved.
_LIMITED = """
import os, resource
import reshard.run as run
fill = run._fill
def limited(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    return fill(*arguments)
run._fill = limited
run._BATCH_BYTES = 0
from cli.reshard import main
main()
"""


@pytest.mark.parametrize("format_name", ["safetensors", "megatron"])
def test_a_limit_met_in_the_middle(source: Path, work: Path, format_name: str) -> None:
    """A quota, or the longest file that a filesystem allows."""
    arguments = (source, "--tp", "2", "--format", format_name, "--jobs", "1", "--output")
    made(*arguments, work / "expected")
    largest = max(size for size, _ in contents(work / "expected").values())
    limited = _LIMITED.replace("LIMIT,", f"{int(largest * 0.6)},")
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, arguments), str(work / "out")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    refused(done, "File too large", "what was done is kept", "same command again")
    assert names(work) == {"model", "expected", ".out.partial"}
    report = json.loads(made(*arguments, work / "out", "--json").stdout)
    assert report["resumed"] < report["tensors"]
    assert contents(work / "out") == contents(work / "expected")
    assert names(work) == {"model", "expected", "out"}


def test_the_sizes_are_named_before_anything_is_written(work: Path) -> None:
    """A checkpoint of nine terabytes, all of them holes, is planned and refused."""
    source = work / "model"
    source.mkdir()
    rows, hidden = 1 << 24, 1 << 17
    header = {}
    at = 0
    for name, shape in {
        "model.embed_tokens.weight": (rows, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (rows, hidden),
    }.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (at, at + size)}
        at += size
    raw = json.dumps(header).encode()
    with (source / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        stream.truncate(8 + len(raw) + at)
    config = CONFIG | {"hidden_size": hidden, "vocab_size": rows, "num_hidden_layers": 1}
    (source / "config.json").write_text(json.dumps(config))
    done = run(source, "--tp", "1", "--output", work / "deep" / "out")
    refused(done, "GB free, but 8796.09 GB would be written", "make room")
    assert names(work) == {"model"}
