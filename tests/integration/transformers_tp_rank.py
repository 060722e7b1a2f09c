"""One rank of a job that loads folders of distributed shards and generates; started by `torchrun`.

`transformers_tp_rank.py JOBS OUT`: JOBS is a JSON object of jobs by name, each with a `kind`: `plain`, `save`
or `load`. Rank R writes OUT/rank-R.json: for each job the new tokens and every step's logits, for `load` also
the bytes read of each shard, or the error.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from transformers.distributed.configuration_utils import DistributedConfig

from reshard.errors import CheckpointError
from reshard.loaders.transformers_tp import load_transformers_tp

#: One batch of two; byte tokens of no meaning.
PROMPT = [[40, 9, 33, 70, 71, 72, 100, 201], [7, 150, 31, 90, 12, 13, 250, 66]]
NEW_TOKENS = 10


def generate(model: Any) -> dict[str, Any]:
    """Greedy tokens and logits; the end token is a token like others, so that every sequence is as long."""
    prompt = torch.tensor(PROMPT)
    with torch.no_grad():
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = torch.stack(found.logits, dim=1).float()
    return {"tokens": found.sequences[:, prompt.shape[1] :].tolist(), "logits": logits.tolist()}


class CountingReader:
    """Counts the bytes of every read that torch's reader carries out, by file."""

    def __init__(self) -> None:
        """Stand in front of the reader's own method."""
        self.read_bytes: Counter[str] = Counter()
        self._original = original = HuggingFaceStorageReader.read_data

        def read_data(reader: Any, plan: Any, planner: Any) -> Any:
            for item in plan.items:
                held = reader.storage_data[item.storage_index]
                size_bytes = held.dtype.itemsize * item.lengths.numel()
                self.read_bytes[Path(held.relative_path).name] += size_bytes
            return original(reader, plan, planner)

        HuggingFaceStorageReader.read_data = read_data

    def stop(self) -> None:
        """Give the reader its method back."""
        HuggingFaceStorageReader.read_data = self._original


def plain(job: dict[str, Any]) -> dict[str, Any]:
    """What transformers generates from a plain checkpoint, unsharded."""
    return generate(transformers.AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32))


def save(job: dict[str, Any]) -> dict[str, Any]:
    """Have transformers itself cut a plain checkpoint and write the shards."""
    parallel = DistributedConfig(tp_size=int(os.environ["WORLD_SIZE"]))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["folder"], dtype=torch.float32, distributed_config=parallel
    )
    model.save_pretrained(job["save_to"], distributed_checkpoint=True)
    return {}


def load(job: dict[str, Any]) -> dict[str, Any]:
    """What our loader makes of a folder of shards."""
    reader = CountingReader()
    try:
        model = load_transformers_tp(
            Path(job["folder"]), dtype=torch.float32, reshard_on_load=job["reshard_on_load"]
        )
    except CheckpointError as error:
        return {"error": type(error).__name__, "sentence": str(error)}
    finally:
        reader.stop()
    return {"read_bytes": dict(reader.read_bytes), **generate(model)}


def main() -> None:
    """Do every job, and write what this rank saw."""
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    transformers.utils.logging.disable_progress_bar()
    kinds = {"plain": plain, "save": save, "load": load}
    results = {name: kinds[job["kind"]](job) for name, job in jobs.items()}
    (out / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
