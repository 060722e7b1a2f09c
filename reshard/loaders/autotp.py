"""Per-rank safetensors into DeepSpeed's automatic tensor parallelism (AutoTP): one rank reads one file.

DeepSpeed has no format for this. It wraps a model's Linears and cuts what they hold. So the model is built
without weights and wrapped, and what is wrapped is filled from this rank's files. Read in DeepSpeed 0.19.8
(`module_inject/auto_tp.py`, `inference/engine.py`) and transformers 5.23 (`core_model_loading.py`).
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.inference.engine import InferenceEngine
from torch import distributed, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ..errors import CheckpointError, InconsistentShardsError, UnsupportedTargetError
from ..messages import shown
from .autotp_forward import localise
from .autotp_model import build, configuration
from .rank_files import RankFiles, find_rank_files

#: Rotary tables, positions and causal masks (of GPT-J and GPT-Neo) that used to be saved.
_LEFT_OVER: Final = frozenset(
    {r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"\.(attn|attention)\.(bias|masked_bias)$"}
)


def load_autotp(folder: Path, *, dtype: torch.dtype) -> InferenceEngine:
    """The model of `folder`, cut over all processes of the run, ready to generate.

    Every process calls it, and when one of them cannot load, every one raises. A process reads `config.json`,
    `generation_config.json` and its own `model-rank-RR-of-NN.safetensors`; the other ranks' files need not be
    there. `torch.distributed` is initialised from the environment, as torchrun or DeepSpeed's launcher sets
    it, unless it already is; all its processes form the one tensor-parallel group.

    Where the model has fewer key and value heads than there are ranks, each rank holds a copy of the one that
    its query heads use, and the configuration of the loaded model counts the copies.

    Args:
        folder: what `reshard.reshard` wrote in the format `safetensors`, cut for as many ranks as there are
            processes.
        dtype: of the loaded parameters; others are cast. A CPU takes float32 and bfloat16.

    Returns:
        DeepSpeed's engine, in evaluation mode; `engine.module` is the wrapped transformers model.

    Raises:
        MissingFileError: no shards, or not all of this rank's.
        InconsistentShardsError: shards of another degree, rank or model, or that do not fit the model.
        DamagedFileError: a file that contradicts its format.
        UnsupportedSourceError: quantized shards.
        UnsupportedTargetError: a model that AutoTP cannot run at this degree.
    """
    rank, tp_size = _join()
    with _agreement(tp_size):
        files = find_rank_files(folder, rank, tp_size)
        config = configuration(folder, tp_size)
        model = build(config, folder, dtype)
        names = _names_in_model(model, files)
    _check_one_origin(files, tp_size)
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    engine = deepspeed.init_inference(
        model,
        # Grains of more than one row would cut unevenly what the shards cut evenly.
        tensor_parallel={"tp_size": tp_size, "tp_grain_size": 1},
        dtype=dtype,
        replace_with_kernel_inject=False,
    )
    with _agreement(tp_size):
        _fill(engine.module, names, files)
    _restore_buffers(engine.module, buffers)
    localise(engine.module, tp_size)
    return engine


def _join() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if "LOCAL_SIZE" not in os.environ:
        # Only DeepSpeed's launcher sets it, and the all-reduce in shared memory crashes without it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    # Before the first collective, or every rank's would be on the first GPU.
    get_accelerator().set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return distributed.get_rank(), distributed.get_world_size()


@contextmanager
def _agreement(tp_size: int) -> Iterator[None]:
    """Let every rank raise when one does: the others would wait for it without end."""
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    failures = _gathered((type(mine), str(mine)) if mine is not None else None, tp_size)
    if mine is not None:
        raise mine
    for rank, failure in enumerate(failures):
        if failure is not None:
            kind, message = failure
            known = kind if issubclass(kind, CheckpointError) else CheckpointError
            raise known(f"rank {rank} cannot load: {message}")


def _gathered(mine: Any, tp_size: int) -> list[Any]:
    """Everybody's value, by rank."""
    if tp_size == 1:
        return [mine]
    values: list[Any] = [None] * tp_size
    distributed.all_gather_object(values, mine)
    return values


def _check_one_origin(files: RankFiles, tp_size: int) -> None:
    """Compare checkpoints over all ranks: each may read from a folder of its own."""
    origins = _gathered((files.manifest.origin.sha256, files.manifest.origin.name), tp_size)
    odd = next((rank for rank, origin in enumerate(origins) if origin != origins[0]), None)
    if odd is not None:
        raise InconsistentShardsError(
            f"rank 0 loads a shard of {origins[0][1]}, and rank {odd} one of {origins[odd][1]}, which has "
            f"other weights; cut one checkpoint for all ranks"
        )


def _names_in_model(model: Any, files: RankFiles) -> dict[str, str]:
    """Where each tensor goes: stored name → the model's, as transformers renames them on loading."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    own = model.state_dict()
    names = {}
    for stored in files.specs:
        name, fused = rename_source_key(stored, renamings, converters, model.base_model_prefix, own)
        if fused is not None:
            raise UnsupportedTargetError(
                f"{files.description} holds {stored!r}, which the model fuses with others, and AutoTP "
                "leaves fused weights whole; load this model with transformers' own tensor parallelism"
            )
        if name in own or not _is_left_over(model, stored):
            names[stored] = name
    if unknown := set(names.values()) - own.keys():
        raise InconsistentShardsError(
            f"{files.description} holds {shown(sorted(unknown))}, which the model of its config.json "
            "does not have"
        )
    return names


def _is_left_over(model: Any, name: str) -> bool:
    """Whether it is a buffer that checkpoints of older releases hold, and that the model now computes."""
    return any(re.search(p, name) for p in _LEFT_OVER | set(model._keys_to_ignore_on_load_unexpected or ()))


def _fill(module: Any, names: Mapping[str, str], files: RankFiles) -> None:
    """Copy every stored tensor to its place, and to the places that are tied to it."""
    wanted = module.state_dict(keep_vars=True)
    held = set(names.values())
    tied = {name: source for name, source in module.all_tied_weights_keys.items() if name not in held}
    if missing := wanted.keys() - held - tied.keys():
        raise InconsistentShardsError(
            f"{files.description} lacks {shown(sorted(missing))}, which the model needs"
        )
    misfits = [
        f"{stored} is {list(files.specs[stored].shape)} and should be {list(wanted[name].shape)}"
        for stored, name in names.items()
        if files.specs[stored].shape != tuple(wanted[name].shape)
    ]
    if misfits:
        raise InconsistentShardsError(
            f"{files.description} is not cut as AutoTP cuts this model: {shown(sorted(misfits))}; "
            "cut the checkpoint again"
        )
    with torch.no_grad():
        for stored, tensor in files.read():
            if stored in names:
                wanted[names[stored]].copy_(tensor)
    for name, source in tied.items():
        _tie(module, name, module.get_parameter(source), files)


def _tie(module: nn.Module, name: str, source: nn.Parameter, files: RankFiles) -> None:
    """Fill a tensor that is not stored from the one that it is tied to."""
    owner, _, leaf = name.rpartition(".")
    target = module.get_parameter(name)
    if target.shape == source.shape:
        module.get_submodule(owner).register_parameter(leaf, source)
        return
    # A head is cut along its inputs even where the embedding that it is tied to stays whole.
    rank, tp_size = files.manifest.tp_rank or 0, files.manifest.tp_size
    width, longer = divmod(source.shape[1], tp_size)
    with torch.no_grad():
        target.copy_(source.narrow(1, rank * width + min(rank, longer), target.shape[1]))


def _restore_buffers(module: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Restore the buffers that `init_inference` leaves uninitialised, or casts: rotary tables, masks."""
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        parent = module.get_submodule(owner)
        current = parent.get_buffer(leaf)
        setattr(parent, leaf, buffer.to(current.device))
