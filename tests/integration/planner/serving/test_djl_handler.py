"""The emitted handler, loaded and asked as DJL Serving's Python engine does, in processes of its own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.plans import plan_with
from fixtures.train import TRAINED
from planner.cost.runtime_model import Emitted
from planner.graph.schema import ModuleGraph
from planner.hardware.load import load
from planner.runtimes.accelerate.emit import emit as emit_accelerate
from planner.runtimes.accelerate.model import RUNTIME_MODEL as ACCELERATE
from planner.runtimes.deepspeed_tp.emit import emit as emit_tensor_parallel
from planner.runtimes.deepspeed_tp.model import RUNTIME_MODEL as TENSOR_PARALLEL
from planner.runtimes.folder import write_folder
from planner.runtimes.zero_inference.emit import emit as emit_zero
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO
from planner.schema.plan import Plan
from planner.schema.workload import Workload
from planner.serving.djl import serve
from planner.verification.tiers import one_tier_down

HERE = Path(__file__).parent
#: `engines/python/setup` of a djl-serving checkout, or what stands in for its package.
DJL_PYTHON = os.environ.get("DJL_PYTHON", str(HERE / "stand_in"))
NEW_TOKENS = 12
PROMPTS = ("The license", "You may", "Licensor")
SHORT = {"max_new_tokens": 5}


def folder_of(
    tmp_path: Path, plan: Plan, graph: ModuleGraph, emit: Callable[[Plan, ModuleGraph], Emitted]
) -> Path:
    """The folder for DJL Serving, a tier down. Its properties are those of the GPUs that are not here."""
    down = one_tier_down(plan)
    write_folder(down, serve(emit(down, graph), plan, graph), tmp_path / "plan")
    return tmp_path / "plan"


def ask(folder: Path, requests: list[Any], tmp_path: Path, num_ranks: int = 1) -> list[list[dict[str, Any]]]:
    """What each rank answers."""
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    names = (folder, TRAINED, tmp_path / "requests.json", tmp_path / "answers")
    command = [sys.executable, str(HERE / "ask_handler.py"), *map(str, names)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    for rank in range(num_ranks):
        environment = dict(os.environ, PYTHONPATH=f"{DJL_PYTHON}:{folder}", OMP_NUM_THREADS="1")
        if num_ranks > 1:
            ranks = {"RANK": rank, "SIZE": num_ranks, "LOCAL_RANK": rank, "LOCAL_SIZE": num_ranks}
            environment |= {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in ranks.items()}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
    return [json.loads((tmp_path / f"answers.{rank}").read_text()) for rank in range(num_ranks)]


def plain_words(folder: Path, prompts: tuple[str, ...], tmp_path: Path) -> list[str]:
    """What `generate.py` of the same folder says."""
    command = [
        sys.executable,
        str(folder / "generate.py"),
        str(TRAINED),
        "--report",
        str(tmp_path / "r.json"),
    ]
    for prompt in prompts:
        command += ["--prompt", prompt]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TRAINED)
    rows = json.loads((tmp_path / "r.json").read_text())["tokens"]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of one process, some of its weights streamed."""
    tmp_path = tmp_path_factory.mktemp("one")
    workload = Workload(batch_size=2, prompt_tokens=12, new_tokens=NEW_TOKENS, dtype="float32")
    profile = load("t4")
    plan, graph = plan_with(
        str(TRAINED), profile, ACCELERATE, ACCELERATE.configurations(profile)[0], workload
    )
    return folder_of(tmp_path, plan, graph, emit_accelerate)


def test_one_request_three_texts_and_a_batch(one_process: Path, tmp_path: Path) -> None:
    words = plain_words(one_process, PROMPTS, tmp_path)
    one = {"inputs": PROMPTS[0]}
    several = {"inputs": list(PROMPTS)}  # more than the planned batch of two
    batch = [{"inputs": PROMPTS[1], "parameters": SHORT}, {"inputs": PROMPTS[2]}]
    (answers,) = ask(one_process, [one, several, batch], tmp_path)
    assert answers[0] == {"code": 200, "keys": [None], "bodies": [{"generated_text": words[0]}]}
    assert answers[1]["bodies"] == [[{"generated_text": said} for said in words]]
    assert answers[2]["keys"] == ["batch_0.data", "batch_1.data"]
    assert answers[2]["bodies"][1] == {"generated_text": words[2]}
    short = answers[2]["bodies"][0]["generated_text"]
    assert 0 < len(short) < len(words[1])
    assert words[1].startswith(short)


@pytest.mark.parametrize(
    "body, sentence",
    [
        ("The license", '"inputs" must be a text or a list of texts, not NoneType'),
        ({"text": "The license"}, '"inputs" must be a text or a list of texts, not NoneType'),
        ({"inputs": ["fine", 7]}, '"inputs" must be a text or a list of texts, not int'),
        (
            {"inputs": "The", "parameters": {"max_new_tokens": 13}},
            '"max_new_tokens" must be from 1 to 12, as planned, not 13',
        ),
        (
            {"inputs": "The", "parameters": {"max_new_tokens": "many"}},
            '"max_new_tokens" must be from 1 to 12, as planned, not many',
        ),
        ({"inputs": "x" * 400}, "and the plan is for 12"),
    ],
)
def test_what_the_plan_has_no_room_for_is_refused(
    one_process: Path, tmp_path: Path, body: Any, sentence: str
) -> None:
    (answers,) = ask(one_process, [body], tmp_path)
    assert answers[0]["code"] == 400
    assert sentence in answers[0]["bodies"][0]["error"]


def test_a_bad_request_leaves_the_others_of_its_batch_alone(one_process: Path, tmp_path: Path) -> None:
    batch = [{"inputs": 7}, {"inputs": PROMPTS[0]}]
    (answers,) = ask(one_process, [batch], tmp_path)
    assert answers[0]["code"] == 200
    assert answers[0]["bodies"][0]["code"] == 400
    assert answers[0]["bodies"][1] == {"generated_text": plain_words(one_process, PROMPTS[:1], tmp_path)[0]}


def test_ranks_of_mpirun_share_a_batch_and_answer_alike(tmp_path: Path) -> None:
    workload = Workload(batch_size=1, prompt_tokens=12, new_tokens=NEW_TOKENS, dtype="float32")
    profile = load("2xt4")
    way = next(
        one for one in ZERO.configurations(profile) if one.num_ranks == 2 and "disk" not in one.streams_from
    )
    plan, graph = plan_with(str(TRAINED), profile, ZERO, way, workload)
    assert (plan.num_streams, plan.workload.batch_size) == (2, 2)
    folder = folder_of(tmp_path, plan, graph, emit_zero)
    first, second = ask(folder, [{"inputs": list(PROMPTS[:2])}], tmp_path, num_ranks=2)
    assert first == second
    words = plain_words(folder, PROMPTS[:2], tmp_path)
    assert first[0]["bodies"] == [[{"generated_text": said} for said in words]]


def test_ranks_that_hold_parts_of_the_model_answer_alike(tmp_path: Path) -> None:
    workload = Workload(batch_size=2, prompt_tokens=12, new_tokens=NEW_TOKENS, dtype="float32")
    profile = load("2xt4")
    plan, graph = plan_with(
        str(TRAINED), profile, TENSOR_PARALLEL, TENSOR_PARALLEL.configurations(profile)[0], workload
    )
    assert (plan.num_ranks, plan.num_streams) == (2, 1)
    folder = folder_of(tmp_path, plan, graph, emit_tensor_parallel)
    first, second = ask(folder, [{"inputs": list(PROMPTS)}], tmp_path, num_ranks=2)
    assert first == second
    words = plain_words(folder, PROMPTS[:2], tmp_path)
    assert first[0]["bodies"][0][:2] == [{"generated_text": said} for said in words]
    assert len(first[0]["bodies"][0]) == 3


def test_a_script_that_cannot_run_is_an_error_and_not_an_end(one_process: Path) -> None:
    """DJL's engine takes SystemExit for the process's own wish."""
    code = (
        f"import sys; sys.path.insert(0, {DJL_PYTHON!r}); sys.path.insert(0, {str(one_process)!r})\n"
        "import model, generate\nfrom djl_python import Input\n"
        "generate.load = lambda checkpoint, offload: generate.stop('it does not fit', 3)\n"
        "generate.stop = __import__('generation').stop\n"
        "request = Input()\nrequest.properties['model_dir'] = 'x'\n"
        "try:\n    model.handle(request)\nexcept RuntimeError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the plan cannot be run (status 3)" in done.stdout
    assert "it does not fit" in done.stderr
