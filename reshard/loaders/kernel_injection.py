"""Pre-shards of the `deepspeed` target, loaded into DeepSpeed's inference kernels.

DeepSpeed's own loader takes whatever it finds: a key that is missing leaves uninitialised memory behind, a
shape of another degree is split or joined again, and a pickle is executed. So the tensors of a folder are
first looked at here, without their data, and compared with what the model needs. Only then is it handed on.
"""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from ..errors import DamagedFileError, InconsistentShardsError, MissingFileError
from .injected_blocks import check_computed, needed_shapes

INDEX_FILE: Final = "ds_inference_config.json"
_NEWEST_TRANSFORMERS: Final = (4, 43)
_NAMED: Final = 4  # names that an error spells out before it counts the rest


class _Index(msgspec.Struct, frozen=True, kw_only=True):
    """`ds_inference_config.json`, without the `base_dir` that DeepSpeed's own saver writes.

    Attributes:
        type: `bloom`, or `ds_model` for every other family.
        checkpoints: `tp`, where file `m * tp_size + rank` is partition m of a rank, and `non_tp`.
        version: of the format.
        parallelization: always `tp`.
        tp_size: ranks that the blocks are cut for.
        dtype: of every tensor.
    """

    type: str
    checkpoints: dict[str, list[str]]
    version: float
    parallelization: str
    tp_size: int
    dtype: str

    def files_of(self, rank: int) -> list[str]:
        """The files that a rank reads."""
        return [*self.checkpoints["tp"][rank :: self.tp_size], *self.checkpoints.get("non_tp", [])]


def load_kernel_injection(folder: Path, *, dtype: torch.dtype, max_out_tokens: int = 1024) -> Any:
    """The DeepSpeed inference engine of `folder`, ready to generate, on this rank's GPU.

    Call it in every process of a job that `torchrun` or the `deepspeed` launcher started. A rank reads its
    own blocks and the tensors that are whole on every rank, and no others. One model a process: DeepSpeed
    counts layers in a global.

    Args:
        folder: what the `deepspeed` target wrote: `config.json`, `ds_inference_config.json` and the files
            that it names.
        dtype: to compute in; the shards must have been written in it.
        max_out_tokens: prompt and generated tokens together; DeepSpeed reserves its KV cache for so many.

    Returns:
        deepspeed.InferenceEngine, whose `generate` and `forward` are the model's, in `dtype`.

    Raises:
        ImportError: transformers is newer than 4.43, whose models DeepSpeed's kernels no longer fit.
        MissingFileError: `folder` lacks a file that it needs.
        DamagedFileError: a file contradicts its format.
        InconsistentShardsError: the shards are incomplete, or of another degree, dtype or model.
        UnsupportedTargetError: the kernels do not compute this model.
    """
    _check_transformers()
    index = _read_index(folder)
    rank, world_size = _rank_and_world_size()
    if index.tp_size != world_size:
        raise InconsistentShardsError(
            f"{folder} is cut for tp_size {index.tp_size}, and the number of processes is {world_size}; "
            f"start {index.tp_size}, or cut it again with --tp {world_size} --format deepspeed"
        )
    if index.dtype != _dtype_name(dtype):
        raise InconsistentShardsError(
            f"{folder} is written in {index.dtype}, and {_dtype_name(dtype)} was asked for; load it in "
            f"{index.dtype}, or write it again with --dtype {_dtype_name(dtype)}"
        )
    model = _meta_model(folder, dtype)
    _check_stored(folder, index.files_of(rank), needed_shapes(model, index.tp_size), dtype)
    return _inject(model, folder, index, rank, dtype=dtype, max_out_tokens=max_out_tokens)


def _inject(
    model: Any, folder: Path, index: _Index, rank: int, *, dtype: torch.dtype, max_out_tokens: int
) -> Any:
    """The engine of `model`, whose blocks are replaced and filled from `folder`."""
    import deepspeed

    engine = deepspeed.init_inference(
        model,
        tensor_parallel={"tp_size": index.tp_size},
        replace_with_kernel_inject=True,
        # Not the file's path: a `base_dir` inside it would win over ours, and name a machine that is gone.
        checkpoint=msgspec.to_builtins(index),
        base_dir=str(folder),
        dtype=dtype,
        max_out_tokens=max_out_tokens,
    )
    # DeepSpeed makes the head anew in float32 and copies the shard's values into it.
    engine.module.to(dtype)
    if dtype != torch.float16:
        _restore_positions(engine.module, folder, index.files_of(rank))
    return engine


def _restore_positions(module: torch.nn.Module, folder: Path, files: list[str]) -> None:
    """Undo that DeepSpeed rounds OPT's positions to float16 whatever the dtype."""
    for file in files:
        for key, tensor in _open(folder / file).items():
            if key.endswith(".embed_positions.weight"):
                with torch.no_grad():
                    module.get_parameter(key).copy_(tensor)


def _check_transformers() -> None:
    found = version("transformers")
    major, minor = (int(part) for part in found.split(".")[:2])
    if (major, minor) > _NEWEST_TRANSFORMERS:
        raise ImportError(
            f"transformers {found} is installed, and DeepSpeed's kernels fit the models of 4.43 and older; "
            "install 4.43.4 in an environment of its own, or load per-rank safetensors with AutoTP"
        )


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read_index(folder: Path) -> _Index:
    """The folder's index, all of whose files are there and inside the folder."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; write the folder with reshard's --format deepspeed")
    try:
        index = msgspec.json.decode(path.read_bytes(), type=_Index)
    except msgspec.DecodeError as error:
        raise DamagedFileError(f"{path} is no index of pre-shards: {error}") from error
    tp_files = index.checkpoints.get("tp", [])
    if index.tp_size < 1 or not tp_files or len(tp_files) % index.tp_size:
        raise DamagedFileError(
            f"{path} lists {len(tp_files)} files for tp_size {index.tp_size}; a multiple of it is needed"
        )
    if index.parallelization != "tp" or index.type not in ("bloom", "ds_model"):
        raise DamagedFileError(
            f"{path} has type {index.type!r} and parallelization {index.parallelization!r}; DeepSpeed reads "
            "'bloom' or 'ds_model', and 'tp'"
        )
    names = [*tp_files, *index.checkpoints.get("non_tp", [])]
    if outside := [name for name in names if Path(name).name != name]:
        raise DamagedFileError(f"{path} names {outside[0]!r}; only files of its own folder are read")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise MissingFileError(f"{folder} lacks {_some(missing)}, named in {INDEX_FILE}; write it again")
    return index


def _meta_model(folder: Path, dtype: torch.dtype) -> Any:
    """The model of `config.json` with no weights, refused where the kernels would compute another one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = folder / "config.json"
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; copy it from the checkpoint that was cut")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise DamagedFileError(f"{path} is no configuration of a known model: {error}") from error
    # transformers 5 writes the rotary numbers under one key, of which 4.43 knows nothing.
    rope = getattr(config, "rope_parameters", None) or {}
    for old, new in (("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")):
        if new in rope:
            setattr(config, old, rope[new])
    check_computed(config)
    # The kernels read a mask that is spelled out; with sdpa, transformers leaves a causal one away.
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, torch_dtype=dtype, attn_implementation="eager").eval()


def _check_stored(
    folder: Path, files: list[str], needed: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    """Compare what `files` hold with what the model needs, without reading the tensors' data."""
    stored: dict[str, tuple[int, ...]] = {}
    for file in files:
        tensors = _open(folder / file)
        _check_file(folder / file, tensors, needed, dtype)
        stored |= {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if missing := sorted(needed.keys() - stored.keys()):
        raise InconsistentShardsError(f"{folder} lacks {_some(missing)}; write it again")
    if unknown := sorted(stored.keys() - needed.keys()):
        raise InconsistentShardsError(
            f"{folder} holds {_some(unknown)}, which the model of config.json lacks"
        )
    if wrong := [key for key, shape in needed.items() if stored[key] != shape]:
        raise InconsistentShardsError(
            f"{folder} holds {wrong[0]} of shape {list(stored[wrong[0]])}, and the model of config.json "
            f"needs {list(needed[wrong[0]])} on a rank; the shards are of another model or degree"
        )


def _check_file(
    path: Path, tensors: dict[str, torch.Tensor], needed: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    # DeepSpeed finds a module by either of its keys, and then takes both from the same file.
    weights = (key.removesuffix(".bias") + ".weight" for key in tensors if key.endswith(".bias"))
    if torn := [key for key in weights if key in needed and key not in tensors]:
        raise InconsistentShardsError(
            f"{path} holds a bias but not {torn[0]}, and DeepSpeed reads both from one file; cut the "
            "checkpoint again with --format deepspeed"
        )
    if wrong := [key for key, tensor in tensors.items() if tensor.dtype != dtype]:
        raise InconsistentShardsError(
            f"{path} holds {wrong[0]} in {_dtype_name(tensors[wrong[0]].dtype)}, and {INDEX_FILE} says "
            f"{_dtype_name(dtype)}; write the folder again"
        )


def _open(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, mapped, not read. Nothing but tensors is unpickled."""
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # whatever torch's zip reader, its unpickler or the system came upon
        raise DamagedFileError(f"{path} is no file of tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(value, torch.Tensor) for value in tensors.values()
    ):
        raise DamagedFileError(f"{path} holds more than tensors by name; int8 pre-shards are not loaded")
    return tensors


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
