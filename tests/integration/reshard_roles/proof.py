"""From a tiny model to its two halves, run and compared: roles, roles file, shards, two processes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import transformers

from reshard import roles as roles_files
from reshard.job import Request
from reshard.roles import Roles
from reshard.run import reshard

from .models import save
from .roles import Derived, derived

ROOT: Final = Path(__file__).resolve().parents[3]
NEW_TOKENS: Final = 8
TP_SIZE: Final = 2


class Case(NamedTuple):
    """What is proved.

    Attributes:
        model: a family of the fixtures, or a model type.
        settings: of its configuration.
        change: made to the roles before anything is cut by them.
    """

    model: str
    settings: dict[str, Any] = {}
    change: Callable[[Roles], Roles] | None = None


class Plain(NamedTuple):
    """A model, its roles, and what it computes in one piece.

    Attributes:
        name: of the case.
        folder: its checkpoint.
        job: for the ranks.
        roles: derived.
        logits: of the prompt.
        tokens: greedy ones.
        margin: the least distance between the best two logits of a greedy step.
        sharded: share of the parameters' elements that is in a parameter that is cut.
    """

    name: str
    folder: Path
    job: dict[str, Any]
    roles: Derived
    logits: torch.Tensor
    tokens: list[list[int]]
    margin: float
    sharded: float


class Compared(NamedTuple):
    """How the halves did.

    Attributes:
        error: the largest difference of a logit, relative to the largest logit.
        tokens_equal: whether every greedy token is the plain model's.
        shares: parameter → its whole shape and that on each rank, where these differ.
    """

    error: float
    tokens_equal: bool
    shares: dict[str, list[tuple[int, ...]]]


def prepare(name: str, work: Path, case: Case | None = None) -> Plain:
    """Build, derive, cut, and compute in one piece.

    Args:
        name: of the case; of its model too, unless `case` says otherwise.
        work: gets a folder of that name.
        case: what is special about it.
    """
    case = case or Case(name)
    folder = work / name / "hf"
    auto_class = save(case.model, folder, case.settings)
    model = getattr(transformers, auto_class).from_pretrained(folder, dtype=torch.float32).eval()
    found = derived(folder)
    if case.change is not None:
        found = found._replace(file=case.change(found.file))
    file = work / name / "roles.json"
    file.write_bytes(roles_files.encode(found.file))
    reshard(
        Request(
            source=str(folder),
            output=work / name / "halves",
            degrees=(TP_SIZE,),
            roles=file,
            memory_bytes=8 << 30,
            jobs=2,
        )
    )
    prompt = {"input_ids": [[(7 * i + 11 * row + 5) % 60 + 3 for i in range(9)] for row in range(2)]}
    if model.config.is_encoder_decoder:
        prompt["decoder_input_ids"] = [[0, 9, 31, 4], [0, 17, 8, 21]]
    inputs = {key: torch.tensor(rows) for key, rows in prompt.items()}
    with torch.no_grad():
        logits = model(**inputs).logits
        made = model.generate(
            input_ids=inputs["input_ids"],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = torch.stack(made.logits).topk(2).values
    job = {
        "name": name,
        "folder": str(work / name / "halves"),
        "auto_class": auto_class,
        "rows": sorted(found.rows),
        "prompt": prompt,
        "new_tokens": NEW_TOKENS,
    }
    margin = (best[..., 0] - best[..., 1]).min().item()
    elements = {key: p.numel() for key, p in model.named_parameters()}
    sharded = sum(elements[key] for key in found.cut) / sum(elements.values())
    return Plain(name, folder, job, found, logits, made.sequences.tolist(), margin, sharded)


def run_halves(jobs: list[dict[str, Any]], work: Path, timeout_s: float = 600) -> dict[str, list[Any]]:
    """Every rank's answers, by job, from one process a rank."""
    (work / "jobs.json").write_text(json.dumps(jobs))
    command = [
        sys.executable,
        "-m",
        "tests.integration.reshard_roles.rank",
        str(work / "jobs.json"),
        str(work),
    ]
    group = {"WORLD_SIZE": str(TP_SIZE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    group |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    logs = [work / f"rank-{rank}.log" for rank in range(TP_SIZE)]
    children = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as out:
                environment = os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                children.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out))
        for child, log in zip(children, logs, strict=True):
            if child.wait(timeout=timeout_s):
                raise RuntimeError(log.read_text()[-4000:])
    finally:
        for child in children:
            child.kill()
            child.wait()
    names = [job["name"] for job in jobs]
    return {n: [json.loads((work / f"{n}-{r}.json").read_text()) for r in range(TP_SIZE)] for n in names}


def compare(plain: Plain, answers: list[dict[str, Any]]) -> Compared:
    """The ranks' answers beside the plain model's.

    Raises:
        RuntimeError: a rank has none.
    """
    for answer in answers:
        if "error" in answer:
            raise RuntimeError(answer["error"] + "\n" + answer["trace"])
    largest = plain.logits.abs().max()
    errors = [float((torch.tensor(a["logits"]) - plain.logits).abs().max() / largest) for a in answers]
    model = transformers.AutoConfig.from_pretrained(plain.folder)
    shapes = _whole_shapes(model, plain.job["auto_class"])
    shares = {
        name: [shape, *(tuple(answer["shapes"][name]) for answer in answers)]
        for name, shape in shapes.items()
        if any(tuple(answer["shapes"][name]) != shape for answer in answers)
    }
    equal = all(answer["tokens"] == plain.tokens for answer in answers)
    return Compared(max(errors), equal, shares)


def _whole_shapes(config: Any, auto_class: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = getattr(transformers, auto_class).from_config(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
