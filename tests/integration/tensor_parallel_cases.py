"""Tiny checkpoints, their pre-shards, and the plans that run them over ranks."""

import json
from pathlib import Path
from typing import Final

import pytest

from fixtures import families, tiny
from fixtures.plans import plan_with
from planner.cost.runtime_model import Scenario
from planner.emission import emit
from planner.graph.schema import ModuleGraph
from planner.hardware.load import load
from planner.runtimes.deepspeed_tp.emit import CONFIG_FILE
from planner.runtimes.registry import RUNTIME_MODELS
from planner.schema.execution import ExecutionConfig
from planner.schema.plan import Plan
from planner.schema.workload import Workload
from planner.tensor_parallel.policy import injection_policy
from planner.verification.tiers import one_tier_down
from reshard.job import Request
from reshard.run import reshard

EIGHT: Final = ("gptj", "opt", "bloom", "gpt_neox", "gpt_neo", "gpt2", "llama", "t5")
#: As many heads that two and four ranks have whole ones, and still fewer for keys and values.
_HEADS: Final = {"num_attention_heads": 8, "num_key_value_heads": 4}
#: CodeGen's fused rows lie in four groups, and every rank takes heads of each.
_MORE: Final = {"codegen": {"n_head": 16, "rotary_dim": 4}}
_LLAMA: Final = families.FAMILIES["llama"].settings
#: Families that no table of ours knows: the graph alone says how they are cut.
UNKNOWN: Final = {
    "biogpt": families.Family(
        "biogpt", {name: size for name, size in _LLAMA.items() if "key_value" not in name}
    ),
    "granite": families.Family("granite", _LLAMA),
    "starcoder2": families.Family("starcoder2", _LLAMA),
    "xglm": families.Family(
        "xglm", {"d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 8, "dropout": 0.0}
    ),
}
#: What `reshard` writes for a runtime.
FORMATS: Final = {"deepspeed-tp": "safetensors", "transformers-tp": "transformers"}
WORKLOAD: Final = Workload(batch_size=2, prompt_tokens=12, new_tokens=8, dtype="float32")


def save(family: str, folder: Path) -> Path:
    """The family's tiny checkpoint, with heads enough for four ranks."""
    spec = families.FAMILIES[family] if family in families.FAMILIES else UNKNOWN[family]
    more = {name: heads for name, heads in _HEADS.items() if name in spec.settings}
    more |= _MORE.get(family, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, family, spec._replace(settings=spec.settings | more))
        return tiny.save(family, folder)


def cut(checkpoint: Path, runtime: str, num_ranks: int, output: Path) -> Path:
    """The checkpoint's pre-shards, as the runtime takes them."""
    degrees, kind = (num_ranks,), FORMATS.get(runtime, runtime)
    reshard(Request(source=str(checkpoint), output=output, degrees=degrees, format=kind))
    return output


def way(runtime: str, num_ranks: int) -> ExecutionConfig:
    """How the runtime runs over so many ranks."""
    found = [
        s for s in RUNTIME_MODELS[runtime].configurations(load("8xa100-80g")) if s.num_ranks == num_ranks
    ]
    return found[0]


def why_not(graph: ModuleGraph, runtime: str, num_ranks: int) -> str | None:
    """The runtime's reason against a model."""
    runtime_model = RUNTIME_MODELS[runtime]
    return runtime_model.why_not(
        Scenario.whole(graph, load("8xa100-80g"), WORKLOAD, way(runtime, num_ranks), runtime_model)
    )


def planned(checkpoint: Path, runtime: str, num_ranks: int) -> tuple[Plan, ModuleGraph]:
    """The plan that runs a checkpoint over so many ranks."""
    runtime_model = RUNTIME_MODELS[runtime]
    return plan_with(str(checkpoint), load("8xa100-80g"), runtime_model, way(runtime, num_ranks), WORKLOAD)


def written(checkpoint: Path, runtime: str, num_ranks: int, folder: Path, *, explicit: bool = False) -> Path:
    """The plan's folder, as it is for a machine without GPUs.

    Args:
        checkpoint: its model's.
        runtime: that runs it.
        num_ranks: over which.
        folder: to write.
        explicit: name the row-parallel Linears even where DeepSpeed finds them itself.
    """
    plan, graph = planned(checkpoint, runtime, num_ranks)
    emit(one_tier_down(plan), graph, folder)
    if explicit:
        file = folder / CONFIG_FILE
        policy = {"injection_policy": injection_policy(graph)}
        file.write_text(json.dumps(json.loads(file.read_text()) | policy))
    return folder
