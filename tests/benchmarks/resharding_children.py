"""What `resharding.py` runs in processes of its own: a plain copy, the obvious script, and ranks that load.

`python resharding_children.py copy SOURCE OUTPUT BYTES THREADS plain|eager`, `… script SOURCE OUTPUT TP`,
`… load SOURCE pre-shards|unsharded` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, Final

#: Reshard's own strip.
BLOCK_BYTES: Final = 8 << 20


def copy(source: Path, output: Path, written_bytes: int, threads: int, *, is_eager: bool) -> None:
    """Copy the shards of `source`, and its first bytes as many times more as make `written_bytes`.

    Every block is read once and written as often as needed, in place, by threads with one buffer each, and
    every file is synced at the end: all that moving the bytes of a reshard takes. An eager copy also does
    what reshard does for speed: it reserves the files' space, and has every block written back at once.
    """
    shards = sorted(source.glob("*.safetensors"))
    sizes = [shard.stat().st_size for shard in shards]
    output.mkdir()
    inputs = [os.open(shard, os.O_RDONLY) for shard in shards]
    outputs = [os.open(output / shard.name, os.O_WRONLY | os.O_CREAT) for shard in shards]
    # The copies of what is written several times, as long as the first shard at most.
    extra = written_bytes - sum(sizes)
    replicas = [os.open(output / f"replica-{i}", os.O_WRONLY | os.O_CREAT) for i in range(7)]
    again = [extra // 7 + (i < extra % 7) for i in range(7)]
    if extra < 0 or again[0] > sizes[0]:
        raise SystemExit(f"{written_bytes} bytes are no copy of {sum(sizes)} with seven replicas of a part")
    if is_eager:
        for descriptor, size in zip((*outputs, *replicas), (*sizes, *again), strict=True):
            if size:
                os.posix_fallocate(descriptor, 0, size)
    blocks: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    # Through all files side by side: the kernel lets one thread at a time write to a file.
    for offset in range(0, max(sizes), BLOCK_BYTES):
        for number, size in enumerate(sizes):
            if offset < size:
                blocks.put((number, offset))

    def work() -> None:
        buffer = memoryview(bytearray(BLOCK_BYTES))
        while True:
            try:
                number, offset = blocks.get_nowait()
            except queue.Empty:
                return
            part = buffer[: min(BLOCK_BYTES, sizes[number] - offset)]
            _read(inputs[number], part, offset)
            _write(outputs[number], part, offset, is_eager=is_eager)
            for replica, length in zip(replicas, again, strict=True):
                if number == 0 and offset < length:
                    _write(replica, part[: length - offset], offset, is_eager=is_eager)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for descriptor in (*outputs, *replicas):
        os.fsync(descriptor)


def _read(descriptor: int, buffer: memoryview, offset: int) -> None:
    done = 0
    while done < len(buffer):
        done += os.preadv(descriptor, [buffer[done:]], offset + done)


def _write(descriptor: int, buffer: memoryview, offset: int, *, is_eager: bool) -> None:
    done = 0
    while done < len(buffer):
        done += os.pwrite(descriptor, buffer[done:], offset + done)
    if is_eager:
        os.posix_fadvise(descriptor, offset, len(buffer), os.POSIX_FADV_DONTNEED)


def script(source: Path, output: Path, tp_size: int) -> None:
    """What one writes without a tool: load the model, slice it, save one file per rank."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    tensors = AutoModelForCausalLM.from_pretrained(source, dtype="auto").state_dict()
    output.mkdir()
    for rank in range(tp_size):
        path = output / f"model-rank-{rank:02d}-of-{tp_size:02d}.safetensors"
        save_file({name: _slice(name, t, rank, tp_size) for name, t in tensors.items()}, path)
        # As reshard does; otherwise one would be timed to the disk and the other to memory.
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _slice(name: str, tensor: Any, rank: int, tp_size: int) -> Any:
    kind = name.split(".")[-2]
    if kind in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        return tensor.chunk(tp_size, 0)[rank].contiguous()
    if kind in ("o_proj", "down_proj", "lm_head"):
        return tensor.chunk(tp_size, 1)[rank].contiguous()
    return tensor


def load(source: Path, way: str) -> None:
    """Load a model into AutoTP; print seconds, bytes that came from the disk, and the logits' magnitude."""
    import time

    import deepspeed
    import torch
    from torch import distributed
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama

    from reshard.loaders.autotp import load_autotp

    assert modeling_llama
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    distributed.barrier()
    read_bytes = _disk_bytes()
    start = time.perf_counter()
    if way == "pre-shards":
        engine = load_autotp(source, dtype=torch.bfloat16)
    else:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        engine = deepspeed.init_inference(
            model,
            tensor_parallel={"tp_size": distributed.get_world_size(), "tp_grain_size": 1},
            dtype=torch.bfloat16,
            replace_with_kernel_inject=False,
        )
    distributed.barrier()
    elapsed_s = time.perf_counter() - start
    read_bytes = _disk_bytes() - read_bytes
    with torch.no_grad():
        logits = engine(input_ids=torch.arange(1, 17)[None]).logits.float()
    print("result", elapsed_s, read_bytes, logits.abs().sum().item(), flush=True)
    # Without these, gloo's threads are sometimes still at work when the process ends, which aborts it.
    distributed.barrier()
    distributed.destroy_process_group()


def _disk_bytes() -> int:
    """Bytes that the disk had to give this process, by calls of `read` or through mapped files."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["copy", source, output, size, threads, way]:
            copy(Path(source), Path(output), int(size), int(threads), is_eager=way == "eager")
        case ["script", source, output, tp_size]:
            script(Path(source), Path(output), int(tp_size))
        case ["load", source, way]:
            load(Path(source), way)
        case _:
            raise SystemExit(__doc__)
