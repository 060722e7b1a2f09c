"""Kills a run at each of its steps in turn, and lets the same request finish. Run as a script.

A step is a call that changes files. The process of step `n` kills itself in front of its `n`-th such call,
or, where the call writes, in the middle of it. What stands there afterwards is printed as JSON.
"""

import argparse
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import reshard.run
from reshard.errors import CheckpointError, OutputExistsError
from reshard.job import Request
from tests.integration.reshard.children import contents

_CALLS = (
    *("open", "pwrite", "fsync", "fdatasync", "posix_fallocate"),
    *("mkdir", "rename", "unlink", "rmdir"),
)


def die_at(step: int) -> Callable[[], int]:
    """Let this process die at its call number `step`; the function says how many there were so far."""
    calls = 0

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                if name == "pwrite":
                    call(arguments[0], arguments[1][: len(arguments[1]) // 2], *arguments[2:])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return dying

    for name in _CALLS:
        setattr(os, name, watched(name, getattr(os, name)))
    return lambda: calls


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returned in a process of its own; None when that was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.write(writing, json.dumps(work()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        raw = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"a child ended with status {status}")
    return json.loads(raw) if status == 0 else None


def finish(request: Request) -> dict[str, Any]:
    """Run `request` to its end: how many tensors were done before, or that the output exists."""
    try:
        return {"resumed": reshard.run.reshard(request).resumed}
    except OutputExistsError as error:
        return {"exists": str(error)}


def refuse(request: Request) -> dict[str, Any]:
    """Run `request`, which is refused while it is planned."""
    try:
        reshard.run.reshard(request)
    except CheckpointError as error:
        return {"refused": str(error)}
    return {}


def at_step(step: int, request: Request, wrong: Request, before: Path | None) -> dict[str, Any] | None:
    """What a kill at `step` led to; None when the run had fewer steps."""
    output = request.output
    shutil.rmtree(output.parent)
    output.parent.mkdir()
    if before is not None:
        shutil.copytree(before, output)

    def run() -> Any:
        die_at(step)
        return finish(request)

    if in_child(run) is not None:
        return None
    found: dict[str, Any] = {"step": step, "killed": seen(output)}
    if step % 2:
        # What is refused may not harm what was done, nor what stood there before.
        found |= in_child(lambda: refuse(wrong))
        found["after_refusal"] = seen(output)
    found |= in_child(lambda: finish(request))
    found["finished"] = seen(output)
    return found


def seen(output: Path) -> dict[str, Any]:
    """What stands beside the output, and what is in it."""
    return {
        "names": sorted(p.name for p in output.parent.iterdir()),
        "output": contents(output) if output.exists() else None,
    }


def main() -> None:
    """Kill a run at every step, or at every `--stride`-th."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("output", type=Path)
    parser.add_argument("--format", default="safetensors")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--before", type=Path, help="a set that stands at the output and is overwritten")
    given = parser.parse_args()
    # Every tensor is a batch of its own, so that there is something to be continued with.
    reshard.run._BATCH_BYTES = 0  # type: ignore[misc]
    request = Request(
        source=given.source,
        output=given.output,
        degrees=(2,),
        format=given.format,
        jobs=2,
        overwrite=given.before is not None,
    )
    wrong = Request(source=given.source, output=given.output, degrees=(3,), overwrite=True)
    given.output.parent.mkdir()
    # Whatever is imported when it is first needed is so once, and not in every child.
    reshard.run.reshard(msgspec.structs.replace(request, output=given.output.with_name("first")))
    results = []
    step = 1
    while (found := at_step(step, request, wrong, given.before)) is not None:
        results.append(found)
        step += given.stride
    print(json.dumps(results))


if __name__ == "__main__":
    main()
