"""A plan for DeepSpeed-MII: configurations and scripts, in its current form and in its legacy form. Pure.

current   `mii.serve`: FastGen, with kernels and a KV cache of its own. It supports a dozen families and keeps
          all weights on the GPUs, so it can run plans that do the same; its times are not those predicted.
legacy    `mii.deploy`: transformers' pipeline with `deepspeed.init_inference` around its model
          (`enable_deepspeed`), or ZeRO-Inference (`enable_zero`); so it runs the planned runtime itself.

Both are in deepspeed-mii 0.3.3; `mii_keys.json` has the fields of its classes.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, Final

import msgspec

from planner.cost.runtime_model import Emitted
from planner.errors import InvalidInputError
from planner.graph.schema import ModuleGraph
from planner.runtimes.kernel_injection.environment import DEEPSPEED, TRANSFORMERS
from planner.schema.plan import Plan

#: Model types of `deepspeed.inference.v2.engine_factory`, 0.19.8.
FASTGEN: Final = frozenset(
    (
        "opt",
        "llama",
        "mistral",
        "mixtral",
        "falcon",
        "phi",
        "phi3",
        "qwen",
        "qwen2",
        "qwen2_moe",
        "exaone4",
        "exaone4_5",
    )
)
#: Runtimes that legacy MII runs itself.
_LEGACY: Final = frozenset({"kernel-injection", "deepspeed-tp", "zero-inference"})
_DTYPES: Final = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
#: Default of FastGen's scheduler for the tokens of one forward.
_RAGGED_TOKENS: Final = 768
_TABLE: Final = "mii_keys.json"
_REQUIREMENTS: Final = "requirements-mii.txt"


class MiiKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of MII's classes.

    Attributes:
        source: package, version and files that the fields were read from.
        classes: class → names of its fields as users write them.
    """

    source: dict[str, str]
    classes: dict[str, tuple[str, ...]]


@functools.cache
def table() -> MiiKeys:
    """The fields that MII's classes take; they refuse any other."""
    return msgspec.json.decode((resources.files("planner.serving") / _TABLE).read_bytes(), type=MiiKeys)


def serve(emitted: Emitted, plan: Plan, graph: ModuleGraph) -> Emitted:
    """The runtime's files together with those of MII, in every form that runs the plan.

    Args:
        emitted: the runtime's files.
        plan: the plan.
        graph: the model's graph.

    Raises:
        InvalidInputError: neither form runs the plan.
    """
    reasons = {"mii.serve": current_refusal(plan, graph), "mii.deploy": legacy_refusal(plan)}
    if all(reasons.values()):
        told = "; ".join(f"{form}: {reason}" for form, reason in reasons.items())
        raise InvalidInputError(
            f"DeepSpeed-MII cannot run this plan ({told}); use `server=djl`, or one of its runtimes: "
            f"{', '.join(f'`runtimes={name}`' for name in sorted(_LEGACY))}"
        )
    files = dict(emitted.files)
    readme = [emitted.readme]
    if reasons["mii.serve"] is None:
        files |= {"mii_config.json": _json(current(plan)), "mii_serve.py": _script("mii_serve.py")}
        readme.append(_CURRENT_README.format(runtime=plan.runtime))
    if reasons["mii.deploy"] is None:
        files |= {"mii_legacy.json": _json(legacy(plan, emitted)), "mii_deploy.py": _script("mii_deploy.py")}
        readme.append(_legacy_readme(plan))
    files[_REQUIREMENTS] = _requirements(reasons)
    return Emitted(files=files, needs=emitted.needs, readme="\n".join(readme))


def runtimes(graph: ModuleGraph) -> tuple[str, ...] | None:
    """The runtimes to plan for when MII is to serve a model; None for all, where FastGen supports it."""
    return None if graph.model_type in FASTGEN else tuple(sorted(_LEGACY))


def current_refusal(plan: Plan, graph: ModuleGraph) -> str | None:
    """Why FastGen cannot run the plan, as a clause."""
    if graph.model_type not in FASTGEN:
        return f"it has no {graph.model_type}, only {', '.join(sorted(FASTGEN))}"
    if plan.workload.dtype == "float32":
        return "it computes in float16 or bfloat16"
    if plan.num_streams > 1 or not _is_resident(plan):
        return "it keeps all weights on its GPUs, and the plan does not"
    if plan.num_ranks == 1 and len({place.runs_on for place in plan.placements}) > 1:
        return "it cuts every layer over its GPUs, and the plan gives each GPU layers of its own"
    if plan.weight_bits is not None:
        return f"it does not quantize weights to {plan.weight_bits} bits"
    return None


def legacy_refusal(plan: Plan) -> str | None:
    """Why legacy MII cannot run the plan, as a clause."""
    if plan.runtime not in _LEGACY:
        return f"it runs {', '.join(sorted(_LEGACY))}, and the plan is for {plan.runtime}"
    if plan.model.auto_class != "causal-lm":
        return f"it generates with causal language models, and {plan.model.name} is a {plan.model.auto_class}"
    if plan.main_device == "cpu":
        return "it needs GPUs"
    if plan.runtime == "zero-inference" and plan.workload.dtype == "bfloat16":
        return "with ZeRO it takes float16 or float32"
    if plan.weight_bits is not None:
        return f"it does not quantize weights to {plan.weight_bits} bits"
    return None


def _is_resident(plan: Plan) -> bool:
    return all(
        place.stored_on == place.runs_on and place.stored_on.startswith("gpu:") for place in plan.placements
    )


def current(plan: Plan) -> dict[str, Any]:
    """The arguments of `mii.serve` without the checkpoint."""
    workload = plan.workload
    tokens = workload.prompt_tokens + workload.new_tokens
    return checked(
        model={
            "tensor_parallel": plan.num_ranks,
            "replica_num": 1,
            "max_length": tokens,
            "inference_engine_config": {
                "tensor_parallel": {"tp_size": plan.num_ranks},
                "state_manager": {
                    "max_context": tokens,
                    "max_ragged_sequence_count": workload.batch_size,
                    "max_ragged_batch_size": max(_RAGGED_TOKENS, workload.batch_size),
                    "max_tracked_sequences": max(2048, workload.batch_size),
                },
            },
        },
        mii={"deployment_name": deployment_name(plan), "enable_restful_api": True},
        prefix="",
    )


def legacy(plan: Plan, emitted: Emitted) -> dict[str, Any]:
    """The arguments of `mii.deploy` without the checkpoint.

    Args:
        plan: a plan for one of the runtimes that legacy MII runs.
        emitted: the runtime's files, ZeRO-Inference's configuration among them.
    """
    workload = plan.workload
    zero = plan.runtime == "zero-inference"
    return checked(
        model={
            "task": "text-generation",
            "dtype": _DTYPES[workload.dtype],
            # Otherwise it checks that the model is on the hub, which fails for a folder.
            "skip_model_check": True,
            "enable_deepspeed": not zero,
            "enable_zero": zero,
            "ds_config": json.loads(emitted.files["ds_config.json"]) if zero else {},
            "tensor_parallel": plan.num_ranks,
            "replace_with_kernel_inject": plan.runtime == "kernel-injection",
            # Otherwise every GPU holds the whole model before DeepSpeed shards it.
            "load_with_sys_mem": not zero,
            "max_tokens": workload.prompt_tokens + workload.new_tokens,
        },
        mii={"deployment_name": deployment_name(plan), **({} if zero else {"enable_restful_api": True})},
        prefix="legacy.",
    )


def checked(*, model: dict[str, Any], mii: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Both configurations as one JSON object, after a check of their keys.

    Args:
        model: fields of MII's ModelConfig.
        mii: fields of MII's MIIConfig.
        prefix: `legacy.` for the legacy form's classes, empty for the current form's.

    Raises:
        InvalidInputError: MII's classes have no such field.
    """
    for name, given in (("ModelConfig", model), ("MIIConfig", mii)):
        unknown = unknown_keys(given, f"{prefix}{name}")
        if unknown:
            raise InvalidInputError(f"MII's {prefix}{name} has no field {', '.join(unknown)}")
    return {"model_config": model, "mii_config": mii}


def unknown_keys(given: Iterable[str], name: str) -> list[str]:
    """The keys that one of MII's classes does not accept, sorted.

    Args:
        given: keys of a configuration.
        name: the class: `ModelConfig` or `MIIConfig`, with the prefix `legacy.` in the legacy form.
    """
    return sorted(set(given) - set(table().classes[name]))


def deployment_name(plan: Plan) -> str:
    """The name by which clients find the deployment."""
    return re.sub(r"[^a-zA-Z0-9-]+", "-", plan.model.name).strip("-")


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _script(name: str) -> bytes:
    return (resources.files("planner.serving") / name).read_bytes()


def _requirements(reasons: Mapping[str, str | None]) -> bytes:
    lines = [f"{table().source['package']}=={table().source['version']}", DEEPSPEED]
    if reasons["mii.deploy"] is None:
        # transformers 5 has removed `transformers.pipeline(framework=…)`, which legacy MII calls.
        lines.append(TRANSFORMERS)
    return "".join(f"{line}\n" for line in lines).encode()


_CURRENT_README: Final = """
To serve with DeepSpeed-MII (`pip install -r requirements-mii.txt`), which runs FastGen in place of {runtime}.
FastGen has its own kernels and KV cache, so times differ from those predicted.

    python mii_serve.py CHECKPOINT --prompt "Once upon a time"
    python mii_serve.py CHECKPOINT --stop
"""


def _legacy_readme(plan: Plan) -> str:
    start = "python" if plan.runtime != "zero-inference" else f"deepspeed --num_gpus {plan.num_ranks}"
    thresholds = (
        "\nMII uses the thresholds of `ds_config.json`, which approximate the plan; `generate.py` keeps\n"
        "exactly the weights on the GPU that the plan keeps there.\n"
        if plan.runtime == "zero-inference"
        else ""
    )
    return f"""
To serve with DeepSpeed-MII's legacy interface, in a separate environment (`pip install -r {_REQUIREMENTS}`):

    {start} mii_deploy.py CHECKPOINT --prompt "Once upon a time"
{thresholds}"""
