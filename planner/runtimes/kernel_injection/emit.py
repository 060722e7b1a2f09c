"""Emits the arguments of `deepspeed.init_inference`, what its blocks compute, and packages that they fit."""

import json
from typing import Any, Final

from planner.cost.runtime_model import Emitted
from planner.graph.schema import ModuleGraph
from planner.runtimes.folder import SCRIPT, script
from planner.runtimes.kernel_injection.environment import REQUIREMENTS
from planner.runtimes.kernel_injection.model import max_out_tokens
from planner.schema.plan import Plan
from reshard.formats.injected import computed_settings

KERNELS_FILE: Final = "kernels.json"
REQUIREMENTS_FILE: Final = "requirements.txt"

#: Families of which DeepSpeed cuts a whole model's archives as it reads them. It shares out a whole fused
#: projection of GPT-NeoX wrongly, and fails where a file ends between a query's and a key's projection.
READS_ARCHIVES: Final = frozenset({"bloom"})

_WHOLE: Final = (
    "A checkpoint that is not cut is loaded whole into host memory by every rank.",
    """Of a checkpoint that is not cut, DeepSpeed reads PyTorch's archives (`pytorch_model*.bin`) one by one;
safetensors are loaded whole into host memory by every rank.""",
)


def kernels(plan: Plan, graph: ModuleGraph) -> dict[str, Any]:
    """The arguments as JSON has them, and the settings of the family that the blocks compute."""
    longest = max_out_tokens(plan.workload)
    return {
        "arguments": {
            "dtype": plan.workload.dtype,
            "tensor_parallel": {"tp_size": plan.num_ranks},
            "replace_with_kernel_inject": True,
            "max_out_tokens": longest,
            # With fewer, DeepSpeed shrinks its cache to what is free, and writes past its end later.
            "min_out_tokens": longest,
        },
        "model_type": graph.model_type,
        "reads_archives": graph.model_type in READS_ARCHIVES,
        "computes": {key: list(values) for key, values in computed_settings(graph.model_type).items()},
    }


def emit(plan: Plan, graph: ModuleGraph) -> Emitted:
    """The arguments, the environment and the script."""
    ranks, dtype = plan.num_ranks, plan.workload.dtype
    gain = f"each of the {ranks} ranks reads its own part only" if ranks > 1 else "nothing is cut in loading"
    longest = max_out_tokens(plan.workload)
    return Emitted(
        files={
            KERNELS_FILE: (json.dumps(kernels(plan, graph), indent=1) + "\n").encode(),
            REQUIREMENTS_FILE: "".join(f"{line}\n" for line in REQUIREMENTS).encode(),
            SCRIPT: script("kernel_injection"),
        },
        needs=f"CUDA and the packages of `{REQUIREMENTS_FILE}`, in an environment of their own: DeepSpeed's "
        "blocks fit the models of transformers 4.43 and no newer ones",
        readme=f"""At the first start DeepSpeed compiles its kernels, which takes CUDA's compiler and minutes,
unless it was installed with `DS_BUILD_TRANSFORMER_INFERENCE=1`.

CHECKPOINT may be cut beforehand, so that {gain}:

    reshard CHECKPOINT --tp {ranks} --format deepspeed --dtype {dtype} --output SHARDS
    python generate.py SHARDS --prompt "Once upon a time"

That is also the way for Megatron-LM's `mp_rank_*` files, which DeepSpeed 0.19.8 has a loader for and does not
reach. {_WHOLE[graph.model_type in READS_ARCHIVES]}

The kernels reserve their cache once: a batch is at most {plan.workload.batch_size}, and a sequence
{longest} tokens.""",
    )
