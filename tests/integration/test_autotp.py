"""DeepSpeed AutoTP from per-rank shards: every rank has its own file alone, and computes as the plain model.

One set of processes per degree loads every family, one after the other, and everything that must be refused.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from fixtures.families import FAMILIES
from tests.integration.autotp_cases import CASES, REFUSED, cut, save, spoil

ROOT = Path(__file__).resolve().parents[2]
#: Float32 sums of a few hundred products taken in another order; the logits are between -10 and 10.
TOLERANCE = 2e-5
NEW_TOKENS = 12


class Plain(NamedTuple):
    """What the plain model computes.

    Attributes:
        checkpoint: where it is.
        prompt: what it was given.
        logits: of the whole prompt.
        logits_without_mask: of its first row, given without a mask.
        tokens: greedy ones; None for an encoder.
        margin: the least distance between the best two logits of a greedy step.
    """

    checkpoint: Path
    prompt: dict[str, list[list[int]]]
    logits: torch.Tensor
    logits_without_mask: torch.Tensor
    tokens: list[list[int]] | None
    margin: float


class Run(NamedTuple):
    """What the ranks of one degree were given and answered, by job."""

    tp_size: int
    folders: dict[str, list[Path]]
    answers: dict[str, list[dict[str, Any]]]


def plain_model(family: str, checkpoint: Path) -> Plain:
    model = getattr(transformers, FAMILIES[family].auto_class).from_pretrained(
        checkpoint, dtype=torch.float32
    )
    # The second prompt is padded at its beginning.
    prompt = {
        "input_ids": [[(7 * i + 11 * row + 5) % 250 for i in range(12)] for row in range(2)],
        "attention_mask": [[1] * 12, [0] * 3 + [1] * 9],
    }
    if model.config.is_encoder_decoder:
        prompt["decoder_input_ids"] = [[0, 9, 31, 4], [0, 77, 8, 201]]
    inputs = {name: torch.tensor(rows) for name, rows in prompt.items()}
    with torch.no_grad():
        logits = model(**inputs).logits
        del inputs["attention_mask"]
        bare = model(**{name: rows[:1] for name, rows in inputs.items()}).logits
    tokens, margin = greedy(model, prompt) if model.can_generate() else (None, 0.0)
    return Plain(checkpoint, prompt, logits, bare, tokens, margin)


def greedy(model: Any, prompt: dict[str, list[list[int]]]) -> tuple[list[list[int]], float]:
    found = model.generate(
        input_ids=torch.tensor(prompt["input_ids"]),
        attention_mask=torch.tensor(prompt["attention_mask"]),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(found.logits).topk(2).values
    return found.sequences.tolist(), (best[..., 0] - best[..., 1]).min().item()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plain]:
    work = tmp_path_factory.mktemp("plain")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is computed before its threads have woken
    try:
        return {n: plain_model(case.family, save(case, work / n)) for n, case in CASES.items()}
    finally:
        torch.set_num_threads(threads)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(tp_size: int, jobs: list[dict[str, Any]], work: Path) -> dict[str, list[dict[str, Any]]]:
    """Every rank's answer, by job."""
    (work / "jobs.json").write_text(json.dumps(jobs))
    command = [
        sys.executable,
        str(ROOT / "tests/integration/autotp_rank.py"),
        str(work / "jobs.json"),
        str(work),
    ]
    group = {"WORLD_SIZE": str(tp_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_SIZE"} | group
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    logs = [work / f"rank-{rank}.log" for rank in range(tp_size)]
    children = []
    try:
        for rank, log in enumerate(logs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("w") as out:
                child = subprocess.Popen(command, env=environment | place, stdout=out, stderr=out)
            children.append(child)
        for child, log in zip(children, logs, strict=True):
            assert child.wait(timeout=900) == 0, log.read_text()[-4000:]
    finally:
        for child in children:
            child.kill()
            child.wait()
    names = [job["name"] for job in jobs]
    return {n: [json.loads((work / f"{n}-{r}.json").read_text()) for r in range(tp_size)] for n in names}


@pytest.fixture(scope="module", params=[2, 4], ids=["tp2", "tp4"])
def run(
    request: pytest.FixtureRequest, plain: dict[str, Plain], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    tp_size, work = request.param, tmp_path_factory.mktemp("autotp")
    folders = {}
    for name in (*REFUSED, *CASES):
        (work / name).mkdir()
        if name in CASES:
            size_bytes = CASES[name].max_shard_bytes
            folders[name] = cut(plain[name].checkpoint, tp_size, work / name, size_bytes)
        else:
            folders[name] = spoil(name, tp_size, work / name)
    prompts = {name: plain[name].prompt if name in CASES else {} for name in folders}
    jobs = [
        {"name": n, "folders": [str(f) for f in found], "prompt": prompts[n], "new_tokens": NEW_TOKENS}
        for n, found in folders.items()
    ]
    return Run(tp_size, folders, run_ranks(tp_size, jobs, work))


@pytest.mark.parametrize("case", CASES)
def test_every_rank_computes_the_plain_models_logits(run: Run, plain: dict[str, Plain], case: str) -> None:
    for answer in run.answers[case]:
        assert "error" not in answer, answer
        for kind in ("logits", "logits_without_mask"):
            wanted = getattr(plain[case], kind)
            torch.testing.assert_close(torch.tensor(answer[kind]), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", [case for case in CASES if case != "bert"])
def test_greedy_tokens_are_the_plain_models(run: Run, plain: dict[str, Plain], case: str) -> None:
    # A nearer tie could fall either way, and the comparison would say nothing.
    assert plain[case].margin > 10 * TOLERANCE
    for answer in run.answers[case]:
        assert answer["tokens"] == plain[case].tokens


@pytest.mark.parametrize("case", CASES)
def test_a_rank_has_its_own_file_alone_and_reads_it_once(run: Run, case: str) -> None:
    for rank, (folder, answer) in enumerate(zip(run.folders[case], run.answers[case], strict=True)):
        shards = [path for path in folder.iterdir() if path.suffix != ".json"]
        assert len(shards) == 1 or case == "llama-in-parts"
        assert {path.name[:19] for path in shards} == {f"model-rank-{rank:02d}-of-{run.tp_size:02d}"}
        size_bytes = sum(path.stat().st_size for path in shards)
        # Beside them, two small configurations and what Python and the process group read.
        assert size_bytes <= answer["bytes_read"] < size_bytes + 10_000


@pytest.mark.parametrize("kind", REFUSED)
def test_all_ranks_refuse_what_one_cannot_load(run: Run, kind: str) -> None:
    error, message = REFUSED[kind]
    for answer in run.answers[kind]:
        assert answer.get("error") == error, answer
        assert message in answer["message"]
