"""One process of a plan: its rank and device, and how it starts the other ranks and gathers their results.

Needs torch, and nothing of the planner that wrote it.
"""

import ctypes
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

# Without this the caching allocator fragments as the KV cache grows. It must be set before torch is imported.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
# DeepSpeed's shared-memory all-reduce reads this; only DeepSpeed's own launcher sets it.
if "LOCAL_WORLD_SIZE" in os.environ:
    os.environ.setdefault("LOCAL_SIZE", os.environ["LOCAL_WORLD_SIZE"])

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

FOLDER = Path(__file__).resolve().parent


def stop(sentence: str, status: int) -> None:
    """Print a message on stderr and exit with `status`."""
    print(f"generate.py: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def read_json(name: str) -> Any:
    """The content of a JSON file of this folder."""
    try:
        return json.loads((FOLDER / name).read_text())
    except (OSError, ValueError) as error:
        return stop(f"{FOLDER / name} cannot be read ({error}); write the plan again", 3)


PLAN = read_json("plan.json")
#: The runtime's configuration.
EXECUTION = PLAN["execution"]
NUM_RANKS, NUM_STREAMS = EXECUTION["num_ranks"], EXECUTION["num_streams"]
RANK = int(os.environ.get("RANK", "0"))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", "0"))
ON_CPU = EXECUTION["main"] == "cpu"
#: The device of this rank's inputs.
DEVICE = torch.device("cpu") if ON_CPU else torch.device("cuda", LOCAL_RANK)


def check_gpus() -> None:
    """Stop if fewer GPUs are visible than this machine's ranks run on."""
    if ON_CPU:
        return
    places = {
        EXECUTION["main"],
        *(placement[key] for placement in PLAN["placements"] for key in ("stored_on", "runs_on")),
    }
    needed = 1 + max(int(place.removeprefix("gpu:")) for place in places if place.startswith("gpu:"))
    if NUM_RANKS > 1:
        # A launcher may have started the ranks on several machines.
        needed = LOCAL_RANK + 1 if "RANK" in os.environ else NUM_RANKS
    if (visible := torch.cuda.device_count()) < needed:
        hosts = "; README.md says how to start it on several hosts" if (FOLDER / "hostfile").exists() else ""
        stop(f"the plan needs {needed} GPU{'s' * (needed > 1)}, and {visible} can be seen here{hosts}", 4)


def launch_ranks(*more: str) -> None:
    """Start this script once per rank, with more arguments, unless a launcher has done so already."""
    check_gpus()
    if NUM_RANKS == 1 or "RANK" in os.environ:
        return
    ranks = ["--standalone", "--nproc_per_node", str(NUM_RANKS)]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // NUM_RANKS)))
    sys.stdout.flush()
    try:
        torchrun.main([*ranks, *sys.argv, *more])
    except SignalException as error:
        stop(f"ended by {error.sigval.name}", 128 + error.sigval)
    except ChildFailedError as error:
        failed = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        for rank, failure in failed:
            print(f"rank {rank} ended with status {failure.exitcode}", file=sys.stderr)
        # The rank that stops has the highest status: the others are ended by a signal, or end with status 1.
        raise SystemExit(max(1, *(failure.exitcode for _, failure in failed))) from None
    raise SystemExit(0)


def synchronize() -> None:
    """Wait for the GPUs that this process uses."""
    for index in gpus():
        torch.cuda.synchronize(index)


def gpus() -> list[int]:
    """The GPUs that this process uses."""
    if ON_CPU or not torch.cuda.is_available():
        return []
    return [LOCAL_RANK] if NUM_RANKS > 1 else list(range(torch.cuda.device_count()))


def keep_host_pages(num_tokens: int) -> bool:
    """Let the C library retain freed heap pages, where the plan has memory for it.

    glibc maps a block of more than 32 MiB anew each time, and the kernel clears its pages, which takes a
    fourth of a large batch's prefill. Retained pages become fragmented, by up to 1.5 times the transient
    bytes. A `MALLOC_MMAP_MAX_` that the user has set is respected.

    Args:
        num_tokens: tokens of all sequences, prompt and new ones.

    Returns:
        Whether pages are retained.
    """
    if not ON_CPU or "MALLOC_MMAP_MAX_" in os.environ or platform.libc_ver()[0] != "glibc":
        return False
    most = PLAN["kept_pages_max_tokens"]
    keeps: bool = most is not None and num_tokens <= most
    # M_MMAP_MAX (-4), M_MMAP_THRESHOLD (-3) and M_TRIM_THRESHOLD (-1) of malloc.h; where pages are not
    # retained, the values that glibc's dynamic adjustment would reach.
    limits = {-4: 0, -1: -1} if keeps else {-4: 65536, -3: 32 << 20, -1: 64 << 20}
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, limit) == 1 for option, limit in limits.items()) and keeps


def share(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This rank's sequences; a rank with fewer repeats one, because all ranks must step together."""
    if NUM_STREAMS == 1:
        return {name: rows.to(DEVICE) for name, rows in inputs.items()}
    total = inputs["input_ids"].shape[0]
    each = -(-total // NUM_STREAMS)
    mine = torch.arange(RANK * each, (RANK + 1) * each).clamp(max=total - 1)
    return {name: rows[mine].to(DEVICE) for name, rows in inputs.items()}


def gathered(mine: Any) -> list[Any]:
    """The values `mine` of all ranks, by rank."""
    if NUM_RANKS == 1:
        return [mine]
    of_ranks: list[Any] = [None] * NUM_RANKS
    torch.distributed.all_gather_object(of_ranks, mine)
    return of_ranks
