"""Serves the plan in this folder with DJL Serving, whose Python engine calls `handle` for every request.

A request is JSON, `{"inputs": "text", "parameters": {"max_new_tokens": 20}}`; the answer is
`{"generated_text": "…"}`. With a list of texts the answer is a list. Texts longer than planned, and more new
tokens, are refused. With several ranks the server starts this file once for each and sends requests to all.
"""

import importlib
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from djl_python import Input, Output

#: Variables of PyTorch's launchers → the variables in which Open MPI has the same values.
RANK_VARIABLES = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}


class Service:
    """The model, loaded as the plan places it."""

    def __init__(self, properties: dict[str, str]) -> None:
        """Load the model.

        Args:
            properties: the server's properties, with `model_id` (a folder or hub id) or `model_dir`.
        """
        # The server sets the variables after it has imported this file, and `generation` reads them once.
        for name, source in RANK_VARIABLES.items():
            if source in os.environ:
                os.environ[name] = os.environ[source]
        folder = str(Path(__file__).resolve().parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        self.generation = importlib.import_module("generation")
        script = importlib.import_module("generate")
        checkpoint = properties.get("model_id") or properties["model_dir"]
        self.offload = tempfile.TemporaryDirectory(prefix="offload-", dir=os.environ.get("OFFLOAD_FOLDER"))
        self.model = script.load(checkpoint, self.offload.name)
        self.tokenizer = self.generation.tokenizer_for(checkpoint, self.model)
        workload = self.generation.PLAN["workload"]
        self.batch_size: int = workload["batch_size"]
        self.prompt_tokens: int = workload["prompt_tokens"]
        self.new_tokens: int = workload["new_tokens"]

    def generate(self, texts: list[str], new_tokens: int) -> list[list[int]]:
        """New token ids of every text, at most the planned number of texts at a time."""
        rows: list[list[int]] = []
        for start in range(0, len(texts), self.batch_size):
            part = texts[start : start + self.batch_size]
            batch = self.tokenizer(part, return_tensors="pt", padding=True)
            inputs = self.generation.share({name: batch[name] for name in ("input_ids", "attention_mask")})
            args = SimpleNamespace(new_tokens=new_tokens, ignore_eos=False)
            mine = self.generation.run(self.model, inputs, args, self.generation.Clock(keep=False))
            ranks = self.generation.gathered(mine.tolist())[: self.generation.NUM_STREAMS]
            rows += [row for rank in ranks for row in rank][: len(part)]
        return rows

    def refusal(self, text: Any, new_tokens: Any) -> str | None:
        """Why a text cannot be continued by so many tokens, as a sentence; None when it can."""
        if not isinstance(text, str):
            return f'"inputs" must be a text or a list of texts, not {type(text).__name__}'
        if not isinstance(new_tokens, int) or not 0 < new_tokens <= self.new_tokens:
            return f'"max_new_tokens" must be from 1 to {self.new_tokens}, as planned, not {new_tokens}'
        num_tokens = len(self.tokenizer(text)["input_ids"])
        if num_tokens > self.prompt_tokens:
            return f"the text has {num_tokens} tokens, and the plan is for {self.prompt_tokens}"
        return None

    def answer(self, requests: list[Any]) -> list[tuple[int, Any]]:
        """HTTP status and body of the answer to each request; all requests' texts are continued together."""
        asked = [self._asked(request) for request in requests]
        reasons = [self._first_refusal(texts, new_tokens) for texts, new_tokens, _ in asked]
        accepted = [request for request, reason in zip(asked, reasons, strict=True) if reason is None]
        all_texts = [text for texts, _, _ in accepted for text in texts]
        most_tokens = max((new_tokens for _, new_tokens, _ in accepted), default=0)
        rows = iter(self.generate(all_texts, most_tokens) if all_texts else [])
        answers: list[tuple[int, Any]] = []
        for (texts, new_tokens, is_list), reason in zip(asked, reasons, strict=True):
            if reason is not None:
                answers.append((400, {"code": 400, "error": reason}))
                continue
            bodies = [self._body(next(rows)[:new_tokens]) for _ in texts]
            answers.append((200, bodies if is_list else bodies[0]))
        return answers

    def _first_refusal(self, texts: list[Any], new_tokens: Any) -> str | None:
        return next((reason for text in texts if (reason := self.refusal(text, new_tokens))), None)

    def _body(self, row: list[int]) -> dict[str, str]:
        return {"generated_text": self.tokenizer.decode(row, skip_special_tokens=True)}

    def _asked(self, request: Any) -> tuple[list[Any], Any, bool]:
        """The texts of a request, the number of new tokens, and whether the texts were a list."""
        if not isinstance(request, dict) or not isinstance(request.get("parameters", {}), dict):
            return [None], self.new_tokens, False
        inputs = request.get("inputs")
        new_tokens = request.get("parameters", {}).get("max_new_tokens", self.new_tokens)
        return (inputs, new_tokens, True) if isinstance(inputs, list) else ([inputs], new_tokens, False)


SERVICE: list[Service] = []


def handle(inputs: Input) -> Output | None:
    """Answer one call of the server: the first has no content and loads the model; others may be batches."""
    try:
        if not SERVICE:
            SERVICE.append(Service(inputs.get_properties()))
        if inputs.is_empty():
            return None
        answers = SERVICE[0].answer([_json(request) for request in inputs.get_batches()])
    except SystemExit as error:
        # The script ends with a message on stderr; the server would only see that the process has ended.
        raise RuntimeError(f"the plan cannot be run (status {error.code}); see the message above") from error
    output = Output()
    output.add_property("content-type", "application/json")
    if not inputs.is_batch():
        status, body = answers[0]
        return output.set_code(status).add_as_json(body)
    for index, (_, body) in enumerate(answers):
        output.add_as_json(body, key="data", batch_index=index)
    return output


def _json(request: Input) -> Any:
    """The body of a request; None for anything but JSON, which is then refused."""
    try:
        return request.get_as_json()
    except ValueError:
        return None
