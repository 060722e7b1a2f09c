"""Writes a checkpoint of random weights with a model's real shapes, at the speed of the disk.

One block of random numbers is drawn. Every tensor repeats this block, starting at an offset of its own: the
values have the magnitude of trained weights, no two tensors are equal, and the time is spent on writing.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from planner.errors import InvalidInputError
from planner.graph.schema import ModuleGraph, Tensor
from planner.models.spec import ModelSpec
from planner.sizes import format_bytes

#: Length of the block, in numbers: a prime, so that tensors of related sizes do not align in it.
_BLOCK: Final = 8_388_593
_SCALE: Final = 0.02
_SHARD_BYTES: Final = 4 * 10**9
_THREADS: Final = 8
#: Bytes of one write.
_PIECE: Final = 16 * 2**20
_NAMES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}
_SIZES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "bool": 1}
_DONE: Final = "random_weights.json"


def write_random(folder: Path, spec: ModelSpec, graph: ModuleGraph, dtype: str) -> Path:
    """Write a checkpoint folder, unless an earlier call has written it there for the same model and dtype.

    Args:
        folder: a new or empty folder, or the result of an earlier call.
        spec: the model's configuration.
        graph: the model's graph, with its tensors.
        dtype: dtype of the stored weights.

    Returns:
        The folder.

    Raises:
        InvalidInputError: the folder contains something else, or the disk is too small.
    """
    stamp = {"config_sha256": spec.config_sha256, "dtype": dtype}
    if folder.is_dir() and any(folder.iterdir()):
        done = folder / _DONE
        if done.is_file() and json.loads(done.read_text()) == stamp:
            return folder
        raise InvalidInputError(
            f"{folder} contains something other than random weights of {spec.name} in {dtype}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = stored_tensors(graph, dtype)
    needed, free = sum(_num_bytes(t, d) for _, t, d in tensors), shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidInputError(
            f"random weights of {spec.name} take {format_bytes(needed)}, and {folder} has "
            f"{format_bytes(free)} free; name a folder on a larger disk, or give `checkpoint`"
        )
    shards = list(_shards(tensors))
    blocks = _blocks({stored for _, _, stored in tensors})
    index: dict[str, str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            _write_shard(folder / name, shard, blocks, pool)
            index |= dict.fromkeys((fqn for fqn, _, _ in shard), name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": needed}, "weight_map": index})
    )
    (folder / "config.json").write_text(json.dumps(spec.config | {"dtype": dtype}))
    (folder / _DONE).write_text(json.dumps(stamp))
    return folder


def stored_tensors(graph: ModuleGraph, dtype: str) -> list[tuple[str, Tensor, str]]:
    """Name, tensor and stored dtype of each tensor in a checkpoint; of tied tensors only the first."""
    tied = {fqn for group in graph.ties for fqn in group[1:]}
    return [
        (fqn, tensor, tensor.dtype or dtype)
        for node in graph.nodes
        for tensor in node.tensors
        for fqn in [f"{node.name}.{tensor.name}".lstrip(".")]
        if tensor.kind != "scratch" and fqn not in tied
    ]


def _num_bytes(tensor: Tensor, stored: str) -> int:
    return tensor.num_elements * _SIZES[stored]


def _shards(tensors: list[tuple[str, Tensor, str]]) -> Iterator[list[tuple[str, Tensor, str]]]:
    """Group consecutive tensors into shards of at most `_SHARD_BYTES`; a larger tensor gets its own shard."""
    shard: list[tuple[str, Tensor, str]] = []
    size = 0
    for entry in tensors:
        num_bytes = _num_bytes(entry[1], entry[2])
        if shard and size + num_bytes > _SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += num_bytes
    if shard:
        yield shard


def _blocks(dtypes: set[str]) -> dict[str, npt.NDArray[np.uint8]]:
    """The bytes of the block in each dtype, repeated once, so that a whole block follows each offset.

    Blocks of integers and booleans are zeros.
    """
    drawn = np.random.default_rng(0).standard_normal(_BLOCK, dtype=np.float32) * np.float32(_SCALE)
    blocks = {}
    for dtype in dtypes:
        if dtype == "bfloat16":
            values: npt.NDArray[Any] = (drawn.view(np.uint32) >> 16).astype(np.uint16)
        elif dtype in ("float16", "float32"):
            values = drawn.astype(dtype)
        else:
            values = np.zeros(_BLOCK, dtype=dtype)
        blocks[dtype] = np.concatenate([values, values]).view(np.uint8)
    return blocks


def _write_shard(
    path: Path,
    shard: list[tuple[str, Tensor, str]],
    blocks: dict[str, npt.NDArray[np.uint8]],
    pool: ThreadPoolExecutor,
) -> None:
    """Write one safetensors file, with several threads."""
    header: dict[str, dict[str, Any]] = {}
    offset = 0
    for fqn, tensor, stored in shard:
        end = offset + _num_bytes(tensor, stored)
        header[fqn] = {"dtype": _NAMES[stored], "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        start = 8 + len(text)
        os.truncate(handle, start + offset)
        os.pwrite(handle, len(text).to_bytes(8, "little") + text, 0)
        jobs = []
        for fqn, _, stored in shard:
            begin, end = header[fqn]["data_offsets"]
            size = _SIZES[stored]
            phase = int.from_bytes(hashlib.sha256(fqn.encode()).digest()[:8], "little") % _BLOCK
            for at in range(begin, end, _PIECE):
                first = (phase + (at - begin) // size) % _BLOCK
                count = min(_PIECE, end - at)
                jobs.append(
                    pool.submit(_write_piece, handle, start + at, blocks[stored], first * size, count)
                )
        for job in jobs:
            job.result()
    finally:
        os.close(handle)


def _write_piece(handle: int, offset: int, block: npt.NDArray[np.uint8], first: int, count: int) -> None:
    """Write `count` bytes of the repeated block, starting at its byte `first`."""
    length = len(block) // 2
    for done in range(0, count, length):
        part = block[first : first + min(length, count - done)]
        written = 0
        while written < len(part):
            written += os.pwrite(handle, part[written:].data, offset + done + written)
