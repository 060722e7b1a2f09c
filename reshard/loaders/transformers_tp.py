"""Load transformers' distributed shards: every rank reads its own part, through transformers itself.

transformers 5 hands a folder of `shard-RRRRR-model-*.safetensors` to torch's distributed checkpoint reader,
which intersects boxes and checks nothing. A hole in the shards leaves memory uninitialised without an error,
and another safetensors file in the folder overrides weights. So the headers are checked here first, against
the model that `config.json` describes.

Source: transformers 5.23 `distributed/checkpoint.py` and `distributed/tensor_parallel.py`.
"""

import os
import warnings
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch.distributed.checkpoint.api import CheckpointException
from transformers.distributed.configuration_utils import DistributedConfig

from ..errors import (
    CannotSplitError,
    DamagedFileError,
    InconsistentShardsError,
    MissingFileError,
    UnsupportedTargetError,
)
from .transformers_shards import check_tensors, read_shards

#: Modules whose output the attention reshapes to heads: cut by columns, every rank needs whole heads.
_HEAD_PROJECTIONS: Final = frozenset(
    {"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "q_b_proj", "kv_b_proj"}
)

#: Stored by older releases; transformers passes over them in plain checkpoints too.
_OLD_BUFFERS: Final = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")


def load_transformers_tp(
    folder: Path, *, dtype: torch.dtype | None = None, reshard_on_load: bool = False
) -> transformers.PreTrainedModel:
    """The model in `folder`, tensor-parallel over all processes of this job, ready to generate.

    Call it in every process of a job that `torchrun` started, or whose process group is initialised; the
    number of processes is the degree. In a single process it loads the whole model. Each rank reads every
    shard's header, the data of its own shard, and of others only the replicated tensors that lie there.

    The process group that transformers opens stays open. End every process with
    `torch.distributed.destroy_process_group()`: gloo's threads may otherwise abort it on its way out.

    Args:
        folder: `config.json` and shards, as the `transformers` target or transformers' own
            `save_pretrained(..., distributed_checkpoint=True)` write them.
        dtype: of the loaded weights; as the configuration says when None.
        reshard_on_load: accept shards that were cut for another degree. Each rank then reads, of several
            shards, the boxes that overlap its part.

    Returns:
        The model in evaluation mode, its parameters sharded by transformers' plan.

    Raises:
        MissingFileError: no configuration, no shards, or one of the set is not there.
        DamagedFileError: a file that contradicts its own header.
        InconsistentShardsError: shards of another degree or model, or that leave a tensor incomplete.
        UnsupportedTargetError: transformers has no such model, or no tensor-parallel plan for it.
        CannotSplitError: the degree would cut an attention head.
    """
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            f"{folder} has no config.json; name a folder that was written with format='transformers'"
        )
    shards = read_shards(folder)
    world_size = _world_size()
    if shards.tp_size != world_size and not reshard_on_load:
        raise InconsistentShardsError(
            f"{folder} was cut for tp_size={shards.tp_size}, and the number of processes is {world_size}; "
            f"start {shards.tp_size}, cut it again with tp_size={world_size}, or pass reshard_on_load=True"
        )
    model_class, config = _architecture(folder)
    with torch.device("meta"):
        described = model_class(config)
    _check_degree(described, world_size)
    check_tensors(
        shards,
        {name: tuple(tensor.shape) for name, tensor in described.state_dict().items()},
        ignored=(*_OLD_BUFFERS, *(described._keys_to_ignore_on_load_unexpected or ())),
    )
    return _load(folder, model_class, dtype, world_size)


def _load(
    folder: Path, model_class: Any, dtype: torch.dtype | None, world_size: int
) -> transformers.PreTrainedModel:
    parallel = {"distributed_config": DistributedConfig(tp_size=world_size)} if world_size > 1 else {}
    with warnings.catch_warnings():
        # A single process without a group is intended; torch warns of it.
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
        )
        try:
            model: transformers.PreTrainedModel = model_class.from_pretrained(
                folder, dtype="auto" if dtype is None else dtype, local_files_only=True, **parallel
            )
        except CheckpointException as error:  # it is no subclass of Exception, which other handlers catch
            cause = next(iter(error.failures.values()))[0]
            raise DamagedFileError(
                f"{folder} has sound headers and still does not load: {cause!r}"
            ) from error
    return model


def _world_size() -> int:
    """How many processes load together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def _architecture(folder: Path) -> tuple[Any, Any]:
    """The model's class, and its configuration."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    names = config.architectures or []
    for name in names:
        model_class = getattr(transformers, name, None)
        if model_class is not None:
            return model_class, config
    raise UnsupportedTargetError(
        f"{folder / 'config.json'} names the architectures {names}, and transformers "
        f"{transformers.__version__} has none of them; put the model's class under `architectures`"
    )


def _check_degree(described: Any, tp_size: int) -> None:
    """Refuse what transformers would find only in the first forward.

    Args:
        described: the model, on no device.
        tp_size: at which it would run.
    """
    if tp_size == 1:
        return
    kind, plan = type(described).__name__, described.tp_plan
    if not plan:
        raise UnsupportedTargetError(
            f"transformers {transformers.__version__} has no tensor-parallel plan for {kind}; load it in one "
            "process with reshard_on_load=True, or cut it for another runtime"
        )
    if not any(name.split(".")[-1] in _HEAD_PROJECTIONS and plan[name] == "colwise" for name in plan):
        return  # outputs are gathered before they are reshaped: any degree works
    config = described.config.get_text_config()
    for setting in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, setting, None)
        if heads and heads % tp_size:
            raise CannotSplitError(
                f"{kind} has {setting}={heads}, which tp_size={tp_size} does not divide, and transformers "
                f"does not repeat heads; use a tp_size that divides {heads}"
            )
