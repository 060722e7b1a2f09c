"""The emitted folder: written completely under a temporary name beside it, then renamed."""

import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from planner.cost.runtime_model import Emitted
from planner.errors import InvalidInputError, RuntimeFailure
from planner.schema.breakdown import worst_by_device
from planner.schema.plan import PLAN_FILE, Plan, encode
from planner.sizes import format_bytes, format_seconds

SCRIPT: Final = "generate.py"
#: Modules that every `generate.py` imports.
SHARED: Final = ("generation.py", "ranks.py")
#: The file that lists what was written. Anything else in the folder is the user's, such as a checkpoint.
LISTING: Final = ".written"


def script(package: str) -> bytes:
    """The `generate.py` of a runtime's package."""
    return resources.files("planner.runtimes").joinpath(package, SCRIPT).read_bytes()


def write_folder(plan: Plan, emitted: Emitted, folder: Path) -> tuple[Path, ...]:
    """Write plan.json, the runtime's files, the modules that they share and README.md as one folder.

    An existing plan is replaced; other files in its folder stay.

    Args:
        plan: the plan.
        emitted: the runtime's files, and a server's if there are any.
        folder: the folder to write.

    Returns:
        The files, under their final names.

    Raises:
        InvalidInputError: `folder` exists and holds something other than a plan.
        RuntimeFailure: the disk is full, or the folder may not be written.
    """
    if folder.exists() and not (folder / PLAN_FILE).is_file() and not _is_empty(folder):
        raise InvalidInputError(f"{folder} exists and is no plan; give a new folder, or remove it first")
    contents = {
        PLAN_FILE: encode(plan),
        **emitted.files,
        **{name: resources.files("planner.runtimes").joinpath(name).read_bytes() for name in SHARED},
        "README.md": _readme(plan, emitted).encode(),
    }
    listing = "".join(f"{name}\n" for name in contents)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, payload in contents.items():
            (fresh / name).write_bytes(payload)
        (fresh / LISTING).write_text(listing)
        umask = os.umask(0)
        os.umask(umask)
        fresh.chmod(0o777 & ~umask)
        _replace(folder, fresh)
    except OSError as error:
        # The error of a full disk does not name a file.
        raise RuntimeFailure(f"cannot write the plan to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return tuple(folder / name for name in contents)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def _replace(folder: Path, fresh: Path) -> None:
    """Rename `fresh` to `folder`; the old content is removed only when the new folder is in its place."""
    if not folder.exists():
        fresh.rename(folder)
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    before = old / "plan"
    folder.rename(before)
    try:
        fresh.rename(folder)
    except OSError:
        before.rename(folder)
        old.rmdir()
        raise
    for name in _foreign(before):
        if not (folder / name).exists():
            (before / name).rename(folder / name)
    shutil.rmtree(old, ignore_errors=True)


def _foreign(folder: Path) -> list[str]:
    """Names in a plan's folder that were not written with it; none where no list says what was written."""
    listing = folder / LISTING
    if not listing.is_file():
        return []
    written = {*listing.read_text().splitlines(), LISTING, "__pycache__"}
    return [entry.name for entry in folder.iterdir() if entry.name not in written]


def _readme(plan: Plan, emitted: Emitted) -> str:
    prediction, workload = plan.prediction, plan.workload
    memory = "\n".join(
        f"- {device}: {format_bytes(worst.total)} of {format_bytes(worst.capacity)}"
        for device, worst in worst_by_device(prediction.memory).items()
    )
    notes = "".join(f"\nNote: {note}.\n" for note in plan.notes)
    ranks = f", {plan.num_ranks} ranks (the script starts them)" if plan.num_ranks > 1 else ""
    streams = ", each with sequences of its own" if plan.num_streams > 1 else ""
    cache = "in host memory" if plan.kv_cache == "offloaded" else "on the device that fills it"
    readme = f"\n{emitted.readme.strip()}\n" if emitted.readme else ""
    return f"""# {plan.model.name} on {plan.hardware.name}

Run it, with a checkpoint of {plan.model.name} (folder or hub id):

    python generate.py CHECKPOINT --prompt "Once upon a time"

It needs {emitted.needs}.
{readme}
Planned for batch {workload.batch_size}, {workload.prompt_tokens} prompt and {workload.new_tokens} new tokens,
{workload.dtype}, {plan.label}{ranks}{streams}; KV cache {cache}.

Predicted: prefill {format_seconds(prediction.time["prefill"].total)}, then \
{format_seconds(prediction.time["decode"].total)} a token; {prediction.tokens_per_s:.3g} tokens/s.
Memory at the worst moment:

{memory}
{notes}"""
