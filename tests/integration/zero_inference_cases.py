"""Plans for ZeRO-Inference that no search would choose: every store, any number of ranks, partly resident."""

import zlib
from pathlib import Path
from typing import Any

import torch
import transformers

from fixtures.byte_tokenizer import byte_tokenizer
from fixtures.families import FAMILIES
from planner.cost.assignment import Assignment
from planner.cost.build_problem import price
from planner.cost.problem import Problem
from planner.cost.runtime_model import Scenario
from planner.emission import emit
from planner.graph.model import Model
from planner.hardware.load import load
from planner.models.resolve import resolve
from planner.runtimes.zero_inference.model import RUNTIME_MODEL
from planner.runtimes.zero_inference.parameters import parameters
from planner.runtimes.zero_inference.sizes import MIN_SWAPPED_BYTES
from planner.schema.plan import Plan
from planner.schema.request import Request
from planner.schema.workload import Workload
from planner.search.best_placement import PricedPlacement
from planner.search.choose import plan_of
from planner.tracing.store import graph_for
from planner.verification.tiers import one_tier_down

EIGHT = ("gptj", "opt", "bloom", "gpt_neox", "gpt_neo", "gpt2", "llama", "t5")

#: Partitions under 1 MiB never leave memory: 512 × 2048 elements of float32 are 4 MiB, 2 for each of two.
_WIDTH = 512
_WIDE = {
    "gptj": {"n_embd": _WIDTH, "rotary_dim": 64},
    "gpt2": {"n_embd": _WIDTH},
    "bloom": {"hidden_size": _WIDTH},
    "gpt_neo": {"hidden_size": _WIDTH},
    "gpt_neox": {"hidden_size": _WIDTH, "intermediate_size": 4 * _WIDTH},
    "llama": {"hidden_size": _WIDTH, "intermediate_size": 4 * _WIDTH},
    "opt": {"hidden_size": _WIDTH, "word_embed_proj_dim": _WIDTH, "ffn_dim": 4 * _WIDTH},
    "t5": {"d_model": _WIDTH, "d_kv": _WIDTH // 4, "d_ff": 4 * _WIDTH},
}


def save_wide(family: str, folder: Path, **changed: Any) -> Path:
    """A checkpoint of the family whose matrices are large enough for NVMe, and what else is `changed`."""
    spec = FAMILIES[family]
    arguments: dict[str, Any] = spec.config_arguments | _WIDE[family] | changed
    config = transformers.AutoConfig.for_model(spec.model_type, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(family.encode()))
        model = getattr(transformers, spec.auto_class).from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 1.0 / parameter.shape[-1] ** 0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def plan_for(
    checkpoint: Path,
    *,
    store: str,
    num_ranks: int = 1,
    kept: int = 0,
    dtype: str = "float32",
    batch_size: int = 2,
    weight_bits: int | None = None,
    hardware: str = "8xa100-80g",
) -> Plan:
    """A plan in which every `kept`-th leaf is resident; none for 0.

    Args:
        checkpoint: its model's.
        store: `cpu`, `disk` or `peers`.
        num_ranks: 1, or any number that is not the profile's.
        kept: one in so many leaves stays on the GPU.
        dtype: of everything.
        batch_size: of all streams together.
        weight_bits: as a plan's.
        hardware: a profile.
    """
    spec = resolve(str(checkpoint))
    graph = graph_for(spec)
    profile = load(hardware)
    settings = RUNTIME_MODEL._configuration(num_ranks, store, kv_cache="device", weight_bits=weight_bits)
    workload = Workload(batch_size=batch_size, prompt_tokens=12, new_tokens=8, dtype=dtype)
    problem = price(Scenario.whole(graph, profile, workload, settings, RUNTIME_MODEL).of_one_rank())
    priced = PricedPlacement(
        problem=problem, assignment=_assignment(problem, store, kept), total_s=1.0, shortage_bytes={}
    )
    model = Model(name=checkpoint.name, auto_class=spec.auto_class, dtype=dtype, graph=graph)
    return plan_of(model, priced, Request.of_workload(workload, settings))


def _assignment(problem: Problem, store: str, kept: int) -> Assignment:
    number, stored_on = 0, []
    for unit in problem.units:
        places = []
        for leaf in unit.leaves:
            number += 1
            stays = not leaf.stored_bytes or (kept and number % kept == 0)
            places.append("gpu:0" if stays else store)
        stored_on.append(tuple(places))
    return Assignment(runs_on=("gpu:0",) * len(problem.units), stored_on=tuple(stored_on))


def tier_down(plan: Plan, checkpoint: Path, folder: Path) -> Path:
    """The plan's folder, one tier down: it runs on a machine without a GPU."""
    emit(one_tier_down(plan), graph_for(resolve(str(checkpoint))), folder)
    return folder


def swapped_parts(plan: Plan, checkpoint: Path) -> list[int]:
    """Bytes of every part of one rank that is large enough for NVMe."""
    found = parameters(graph_for(resolve(str(checkpoint))))
    itemsize = plan.workload.itemsize_bytes
    parts = [one.partition_elements(plan.num_ranks) * itemsize for one in found]
    return [num_bytes for num_bytes in parts if num_bytes >= MIN_SWAPPED_BYTES]
