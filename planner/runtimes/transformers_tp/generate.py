"""Generates with the plan in this folder: `python generate.py CHECKPOINT --prompt "Once upon a time"`.

transformers shards the model over the plan's ranks, which this script starts. CHECKPOINT is a Hugging Face
folder or hub id, or what `reshard CHECKPOINT --tp RANKS --format transformers` wrote; then a rank reads its
own file and what is replicated. Needs torch, transformers and safetensors.
Exit status: 0 done, 3 the checkpoint does not fit the plan, 4 out of memory or of GPUs.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

# First, because it configures torch's allocator.
from generation import DTYPE, NUM_RANKS, RANK, auto_class, check_loaded, main, stop

# isort: split
import torch
import transformers
from safetensors import safe_open
from torch.distributed.checkpoint.api import CheckpointException
from transformers.distributed.configuration_utils import DistributedConfig

SHARD = re.compile(r"shard-(\d{5})-model-\d{5}-of-\d{5}\.safetensors")


def load(checkpoint: str, offload_folder: str) -> Any:
    """This rank's part of the model, on its device."""
    if RANK:
        transformers.utils.logging.disable_progress_bar()
    shards = shards_in(Path(checkpoint))
    if shards:
        check_whole(checkpoint, shards)
    try:
        model, info = auto_class().from_pretrained(
            checkpoint,
            dtype=DTYPE,
            distributed_config=DistributedConfig(tp_size=NUM_RANKS),
            output_loading_info=True,
            ignore_mismatched_sizes=not shards,
        )
    except CheckpointException as error:  # not derived from Exception, so no other handler catches it
        stop(f"{checkpoint} does not load: {next(iter(error.failures.values()))[0]!r}", 3)
    if not shards:
        check_loaded(info, checkpoint)
    return model.eval()


def shards_in(folder: Path) -> list[Path]:
    """The files of a pre-sharded checkpoint; none for any other."""
    if not folder.is_dir():
        return []
    advice = f"cut the checkpoint with: reshard CHECKPOINT --tp {NUM_RANKS} --format transformers"
    files = sorted(folder.glob("*.safetensors"))
    matches = {path: SHARD.fullmatch(path.name) for path in files}
    ranks = {int(match[1]) for match in matches.values() if match}
    if not ranks:
        if (folder / "ds_inference_config.json").is_file() or any(folder.glob("model-rank-*")):
            stop(f"{folder} is cut for DeepSpeed, which is not what this plan runs; {advice}", 3)
        return []
    if ranks != set(range(1, NUM_RANKS + 1)):
        numbers = ", ".join(map(str, sorted(ranks)))
        stop(f"{folder} holds shards {numbers}, not those of {NUM_RANKS} ranks; {advice}", 3)
    stray = [path.name for path, match in matches.items() if not match]
    if stray:
        stop(f"{folder} holds {stray[0]} beside the shards, and transformers would read that too", 3)
    return files


def check_whole(checkpoint: str, shards: list[Path]) -> None:
    """Stop if the shards lack elements of a tensor: transformers would leave those uninitialized."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    with torch.device("meta"):
        wanted = auto_class().from_config(config).state_dict()
    held = dict.fromkeys(wanted, 0)
    for path in shards:
        with safe_open(path, framework="pt") as file:
            for name in json.loads((file.metadata() or {}).get("DCP_SHARDING_INFO", "{}")):
                held[name] = held.get(name, 0) + math.prod(file.get_slice(name).get_shape())
    for name, tensor in wanted.items():
        if held[name] != tensor.numel():
            stop(f"the shards in {checkpoint} hold {held[name]} of {tensor.numel()} elements of {name}", 3)


if __name__ == "__main__":
    main(load, __doc__)
