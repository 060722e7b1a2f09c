"""Sums and gathers over the GPUs of one machine: measured with NCCL, and beside what the cost model says.

On the machine, which needs torch alone:

    torchrun --nproc-per-node 2 tests/benchmarks/collectives_gpu.py measure OUT.json

and anywhere, with a profile of those GPUs:

    python tests/benchmarks/collectives_gpu.py compare OUT.json h200
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

#: Bytes: a token of a small model's hidden state, up to a prompt of a large batch.
SIZES = tuple(2**power for power in range(12, 29, 2))
_REPEATS = 20


def measure(out: Path) -> None:
    """Time each size on every rank; rank 0 writes the slowest rank's median."""
    import torch
    import torch.distributed as dist

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    before = torch.cuda.mem_get_info()[0]
    dist.init_process_group("nccl")
    found: dict[str, Any] = {"all_reduce_s": {}, "all_gather_s": {}}
    for size in SIZES:
        whole = torch.zeros(size // 2, dtype=torch.float16, device="cuda")
        part = whole[: whole.numel() // ranks].clone()
        found["all_reduce_s"][size] = _median_s(lambda data=whole: dist.all_reduce(data))
        found["all_gather_s"][size] = _median_s(
            lambda data=whole, own=part: dist.all_gather_into_tensor(data, own)
        )
    torch.cuda.empty_cache()
    slowest = [None] * ranks
    dist.all_gather_object(slowest, found)
    if rank == 0:
        result = {
            "device": torch.cuda.get_device_name(),
            "num_ranks": ranks,
            "versions": {"torch": torch.__version__, "nccl": ".".join(map(str, torch.cuda.nccl.version()))},
            # The last sizes' tensors are still there.
            "communicator_bytes": before - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved(),
            **{
                kind: {str(size): max(one[kind][size] for one in slowest) for size in SIZES}
                for kind in ("all_reduce_s", "all_gather_s")
            },
        }
        text = json.dumps(result, indent=1)
        out.write_text(text + "\n")
        print(text)
    dist.destroy_process_group()


def _median_s(run: Any) -> float:
    """Median of a batch of calls that are issued one after the other, as a forward does."""
    import torch
    import torch.distributed as dist

    times = []
    for _ in range(6):
        dist.barrier()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(_REPEATS):
            run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / _REPEATS)
    return statistics.median(times[1:])


def compare(measured: Path, profile: str) -> None:
    """A table of both."""
    from planner.hardware.load import load
    from planner.tensor_parallel.all_reduce import all_gather_s, all_reduce_s, communicator_bytes

    found, fabric = json.loads(measured.read_text()), load(profile).fabric
    if fabric is None:
        raise SystemExit(f"{profile} says nothing of a fabric")
    ranks = found["num_ranks"]
    print(f"{ranks} × {found['device']}, {found['versions']}; {fabric.kind}")
    print(
        f"NCCL keeps {found['communicator_bytes']:,} bytes, predicted {communicator_bytes(ranks, fabric):,}"
    )
    for kind, predict in (("all_reduce_s", all_reduce_s), ("all_gather_s", all_gather_s)):
        print(f"{kind:>13} {'bytes':>12} {'measured µs':>12} {'predicted':>10}  ratio")
        for size, seconds in found[kind].items():
            expected = predict(int(size), ranks, fabric)
            row = f"{1e6 * seconds:>12.1f} {1e6 * expected:>10.1f}  {expected / seconds:.2f}"
            print(f"{'':>13} {int(size):>12,} {row}")


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(Path(sys.argv[2]))
    else:
        compare(Path(sys.argv[2]), sys.argv[3])
