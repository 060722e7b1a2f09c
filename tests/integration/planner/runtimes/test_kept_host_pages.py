"""An emitted folder for the processor has the C library keep pages where there is room, and only there."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fixtures.train import TRAINED
from planner.bench.baselines import write_baseline
from planner.emission import emit
from planner.graph.model import Model
from planner.hardware.load import load
from planner.models.resolve import resolve
from planner.models.spec import ModelSpec
from planner.schema.plan import Plan, read
from planner.schema.request import Request
from planner.schema.workload import Workload
from planner.search.choose import make_plan
from planner.tracing.store import graph_for

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

#: Blocks from 64 MiB on, which glibc by itself gives pages of their own: they are no part of the heap. Each
#: is twice as large as the one before, whose place in the heap it would get otherwise.
_CHILD = """
import ctypes
import sys
import generate
from ranks import keep_host_pages
import torch

def is_in_heap(num_elements):
    block = torch.ones(num_elements)
    place = block.data_ptr()
    for line in open("/proc/self/maps"):
        begin, end = (int(word, 16) for word in line.split()[0].split("-"))
        if begin <= place < end:
            return line.rstrip().endswith("[heap]")
    raise SystemExit("nowhere")

for turn, num_tokens in enumerate(map(int, sys.argv[1:])):
    ctypes.CDLL(None).malloc_trim(0)  # As planner bench does before each batch.
    print(keep_host_pages(num_tokens), is_in_heap(1 << 24 + turn))
"""


def trained(spec: ModelSpec) -> Model:
    return Model.of(spec, graph_for(spec))


def planned(folder: Path, batch_size: int, memory_bytes: int = 64 << 30) -> Plan:
    """A plan of the trained model for a processor: sequences of 6 and 4 tokens."""
    model = trained(resolve(str(TRAINED)))
    request = Request(
        prompt_tokens=6, new_tokens=4, dtype="float32", runtimes=("cpu",), batch_size=batch_size
    )
    machine = load("cpu-16c-64g")
    memory = msgspec.structs.replace(machine.host.memory_bytes, value=float(memory_bytes))
    host = msgspec.structs.replace(machine.host, memory_bytes=memory)
    plan = make_plan(model, msgspec.structs.replace(machine, host=host), request)
    emit(plan, model.graph, folder)
    return plan


def transient_of(plan: Plan) -> int:
    return max(part.transient_bytes for part in plan.prediction.memory["cpu"].values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two sequences, 20 tokens."""
    found: Path = tmp_path_factory.mktemp("plans") / "cpu"
    planned(found, 2)
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


def test_the_plan_counts_the_holes_of_what_its_script_keeps(tmp_path: Path) -> None:
    large = planned(tmp_path / "large", 4096)
    transient_bytes = transient_of(large)
    prefill = large.prediction.memory["cpu"]["prefill"]
    # Beyond the allocator's share, or what border there is would be one at which nothing fits.
    assert transient_bytes > 96 << 20
    border = prefill.weights + prefill.context + 5 * transient_bytes // 2
    slacks = []
    for side, memory_bytes in enumerate((border - 2, border + 2)):
        plan = planned(tmp_path / str(side), 4096, memory_bytes)
        slacks.append(plan.prediction.memory["cpu"]["prefill"].slack)
        keeps = bool(side)
        assert said(tmp_path / str(side), 4096 * 10) == [f"{keeps} {keeps}"]
    assert slacks[1] - slacks[0] == pytest.approx(0.8 * transient_bytes, abs=2)
    assert prefill.slack == slacks[1]


def test_who_runs_without_a_plan_keeps_none_and_none_are_counted(tmp_path: Path, folder: Path) -> None:
    spec = resolve(str(TRAINED))
    workload = Workload(batch_size=2, prompt_tokens=6, new_tokens=4, dtype="float32")
    machine = load("cpu-16c-64g")
    plain = write_baseline("cpu", spec, trained(spec), machine, workload, tmp_path / "plain").plan
    assert said(tmp_path / "plain", 20) == ["False False"]
    kept = read(folder)
    slacks = [plan.prediction.memory["cpu"]["decode"].slack for plan in (plain, kept)]
    assert slacks[1] - slacks[0] == pytest.approx(0.8 * transient_of(kept), abs=1)
