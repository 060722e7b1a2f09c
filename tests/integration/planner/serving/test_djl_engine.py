"""The emitted folder in DJL Serving's own Python engine, spoken to over its socket as the server does.

Needs `engines/python/setup` of a djl-serving checkout (0.36.0), named by `DJL_PYTHON`: it is on no index.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fixtures.plans import plan_with
from fixtures.train import TRAINED
from planner.hardware.load import load
from planner.runtimes.folder import write_folder
from planner.runtimes.zero_inference.emit import emit
from planner.runtimes.zero_inference.model import RUNTIME_MODEL
from planner.schema.workload import Workload
from planner.serving.djl import properties_of, serve
from planner.verification.tiers import one_tier_down

SETUP = os.environ.get("DJL_PYTHON")
NUM_RANKS = 2


def utf8(text: str | None) -> bytes:
    """A string on the wire."""
    return struct.pack(">i", -1) if text is None else struct.pack(">i", len(text.encode())) + text.encode()


def message(properties: dict[str, str], content: dict[str, bytes]) -> bytes:
    """An input on the wire: counted properties, counted content."""
    parts = [struct.pack(">h", len(properties))]
    parts += [utf8(key) + utf8(value) for key, value in properties.items()]
    parts.append(struct.pack(">h", len(content)))
    parts += [utf8(key) + struct.pack(">i", len(value)) + value for key, value in content.items()]
    return b"".join(parts)


class Wire:
    """One engine process's socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(240)
        until = time.monotonic() + 120
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.2)
        self.socket.connect(str(path))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            assert more, "the engine closed its socket"
            data += more
        return data

    def _number(self, form: str) -> int:
        value: int = struct.unpack(form, self._exactly(struct.calcsize(form)))[0]
        return value

    def _text(self) -> str | None:
        length = self._number(">i")
        return None if length < 0 else self._exactly(length).decode()

    def answer(self) -> tuple[int, list[Any]]:
        """Status and bodies."""
        code = self._number(">h")
        self._text()
        for _ in range(self._number(">h")):
            self._text(), self._text()
        bodies = []
        for _ in range(self._number(">h")):
            self._text()
            bodies.append(json.loads(self._exactly(self._number(">i"))))
        return code, bodies


@pytest.mark.skipif(SETUP is None, reason="DJL_PYTHON does not name a djl-serving checkout's Python engine")
def test_two_ranks_behind_the_engine(tmp_path: Path) -> None:
    profile = load("2xt4")
    way = next(
        one
        for one in RUNTIME_MODEL.configurations(profile)
        if one.num_ranks == NUM_RANKS and "disk" not in one.streams_from
    )
    workload = Workload(batch_size=1, prompt_tokens=12, new_tokens=8, dtype="float32")
    plan, graph = plan_with(str(TRAINED), profile, RUNTIME_MODEL, way, workload)
    down = one_tier_down(plan)
    folder = tmp_path / "plan"
    write_folder(down, serve(emit(down, graph), plan, graph), folder)
    # What the server makes of serving.properties: options without their prefix, and the rest as it is.
    properties = {key.removeprefix("option."): value for key, value in properties_of(plan).items()}
    properties |= {"handler": "handle", "model_id": str(TRAINED), "model_dir": str(folder)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    wires: list[Wire] = []
    for rank in range(NUM_RANKS):
        ranks = {"RANK": rank, "SIZE": NUM_RANKS, "LOCAL_RANK": rank, "LOCAL_SIZE": NUM_RANKS}
        environment = os.environ | {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in ranks.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = f"{SETUP}:{folder}"
        command = [sys.executable, f"{SETUP}/djl_python_engine.py", "--sock-type", "unix"]
        command += ["--sock-name", str(tmp_path / "sock"), "--model-dir", str(folder)]
        command += ["--entry-point", "model.py", "--tensor-parallel-degree", str(NUM_RANKS)]
        with (tmp_path / f"log.{rank}").open("wb") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        wires += [Wire(tmp_path / f"sock.{rank}") for rank in range(NUM_RANKS)]
        for wire in wires:
            wire.socket.sendall(message(properties, {}))
        assert [wire.answer() for wire in wires] == [(204, [])] * NUM_RANKS
        body = json.dumps({"inputs": ["The license", "You may"]}).encode()
        request = message({"handler": "handle", "content-type": "application/json"}, {"data": body})
        for wire in wires:
            wire.socket.sendall(request)
        (code, bodies), *others = [wire.answer() for wire in wires]
        assert code == 200
        assert [len(one["generated_text"]) > 0 for one in bodies[0]] == [True, True]
        assert others == [(code, bodies)]
    finally:
        for wire in wires:
            wire.socket.close()
        for process in running:
            process.kill()
            process.wait()
