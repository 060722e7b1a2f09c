"""Plays DJL Serving's part: loads `model.py` as its Python engine does, and asks it.

Arguments: FOLDER CHECKPOINT REQUESTS OUT. REQUESTS is JSON: a list, each one body or a list
of several that come as one batch. OUT gets, of each, status and bodies by key. Rank variables are Open
MPI's, as mpirun sets them.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from djl_python import Input, Output


def _service(entry: Path) -> Any:
    """The handler's module, under a name that is not its file's."""
    spec = importlib.util.spec_from_file_location("model_0a1b2c3d", entry)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model_0a1b2c3d"] = module
    spec.loader.exec_module(module)
    return module


def _single(body: Any, properties: dict[str, str]) -> Input:
    request = Input()
    request.properties.update(properties, **{"content-type": "application/json"})
    request.content.add(key="data", value=bytearray(json.dumps(body).encode()))
    return request


def _batch(bodies: list[Any], properties: dict[str, str]) -> Input:
    request = Input()
    request.properties.update(properties, batch_size=str(len(bodies)))
    for number, body in enumerate(bodies):
        request.properties[f"batch_{number:03}.content-type"] = "application/json"
        request.content.add(key=f"batch_{number:03}.data", value=bytearray(json.dumps(body).encode()))
    return request


def _read(output: Output) -> dict[str, Any]:
    content = output.content
    keys = [content.key_at(number) for number in range(content.size())]
    bodies = [json.loads(bytes(content.value_at(number))) for number in range(content.size())]
    return {"code": output.code, "keys": keys, "bodies": bodies}


def main() -> None:
    """Load, ask everything, write."""
    folder, checkpoint, requests, out = (Path(argument) for argument in sys.argv[1:])
    properties = {"model_dir": str(folder), "model_id": str(checkpoint)}
    module = _service(folder / "model.py")
    first = Input()
    first.properties.update(properties)
    assert module.handle(first) is None
    answers = []
    for body in json.loads(requests.read_text()):
        asked = _batch(body, properties) if isinstance(body, list) else _single(body, properties)
        answers.append(_read(module.handle(asked)))
    out.with_suffix(f".{os.environ.get('OMPI_COMM_WORLD_RANK', '0')}").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
