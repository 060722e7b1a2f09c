"""An emitted folder for the processor has the C library keep pages where there is room, and only there."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.train import TRAINED
from planner.graph.store import graph_for
from planner.hardware.load import load
from planner.models.resolve import resolve
from planner.models.traced import Model
from planner.planning import make_plan
from planner.request import Request
from planner.runtimes.registry import emit

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

#: 64 MiB, which glibc by itself gives pages of their own: they are no part of the heap.
_CHILD = """
import ctypes
import sys
from ranks import keep_host_pages
import torch

def is_in_heap():
    block = torch.ones(1 << 24)
    place = block.data_ptr()
    for line in open("/proc/self/maps"):
        begin, end = (int(word, 16) for word in line.split()[0].split("-"))
        if begin <= place < end:
            return line.rstrip().endswith("[heap]")
    raise SystemExit("nowhere")

for num_tokens in map(int, sys.argv[1:]):
    ctypes.CDLL(None).malloc_trim(0)  # As planner bench does before each batch.
    print(keep_host_pages(num_tokens), is_in_heap())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the trained model for a processor with 64 GiB: two sequences of 6 and 4 tokens."""
    spec = resolve(str(TRAINED))
    graph = graph_for(spec)
    model = Model(name=spec.name, auto_class=spec.auto_class, dtype=spec.dtype, graph=graph)
    request = Request(prompt_tokens=6, new_tokens=4, dtype="float32", runtimes=("cpu",), batch_size=2)
    found: Path = tmp_path_factory.mktemp("plans") / "cpu"
    emit(make_plan(model, load("cpu-16c-64g"), request), graph, found)
    return found


def said(folder: Path, *num_tokens: int, **variables: str) -> list[str]:
    command = [sys.executable, "-c", _CHILD, *map(str, num_tokens)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment | variables, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_pages_are_kept_while_the_plan_leaves_room_for_holes(folder: Path) -> None:
    # A batch that is too large for it afterwards, as planner bench runs one, has them given back again.
    assert said(folder, 20, 10**9, 20) == ["True True", "False False", "True True"]


def test_who_has_set_the_library_up_has_it_his_way(folder: Path) -> None:
    assert said(folder, 20, MALLOC_MMAP_MAX_="65536") == ["False False"]
