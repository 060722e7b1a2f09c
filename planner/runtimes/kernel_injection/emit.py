"""Emits the arguments of `deepspeed.init_inference`, what its blocks compute, and compatible packages."""

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

#: Model types whose PyTorch archives of a whole model DeepSpeed shards correctly as it reads them. It cuts a
#: fused projection of GPT-NeoX wrongly, and fails where a file ends between a query's and a key's projection.
READS_ARCHIVES: Final = frozenset({"bloom"})

_WHOLE: Final = (
    "From a checkpoint that is not pre-sharded, every rank loads the whole model into host memory.",
    """From a checkpoint that is not pre-sharded, DeepSpeed reads PyTorch archives (`pytorch_model*.bin`) one
by one; from safetensors every rank loads the whole model into host memory.""",
)


def kernels(plan: Plan, graph: ModuleGraph) -> dict[str, Any]:
    """The arguments as JSON, and the values of the configuration that DeepSpeed's blocks compute."""
    longest = max_out_tokens(plan.workload)
    return {
        "arguments": {
            "dtype": plan.workload.dtype,
            "tensor_parallel": {"tp_size": plan.num_ranks},
            "replace_with_kernel_inject": True,
            "max_out_tokens": longest,
            # With a smaller value DeepSpeed reduces its cache to the free memory, and writes past its end.
            "min_out_tokens": longest,
        },
        "model_type": graph.model_type,
        "reads_archives": graph.model_type in READS_ARCHIVES,
        "computes": {key: list(values) for key, values in computed_settings(graph.model_type).items()},
    }


def emit(plan: Plan, graph: ModuleGraph) -> Emitted:
    """The arguments, the environment and the script."""
    ranks, dtype = plan.num_ranks, plan.workload.dtype
    gain = (
        f"each of the {ranks} ranks reads its own part only" if ranks > 1 else "loading needs no resharding"
    )
    longest = max_out_tokens(plan.workload)
    return Emitted(
        files={
            KERNELS_FILE: (json.dumps(kernels(plan, graph), indent=1) + "\n").encode(),
            REQUIREMENTS_FILE: "".join(f"{line}\n" for line in REQUIREMENTS).encode(),
            SCRIPT: script("kernel_injection"),
        },
        needs=f"CUDA and the packages of `{REQUIREMENTS_FILE}`, in a separate environment: DeepSpeed's "
        "blocks are compatible with the models of transformers 4.43 and no newer ones",
        readme=f"""At the first start DeepSpeed compiles its kernels, which needs CUDA's compiler and takes
minutes, unless it was installed with `DS_BUILD_TRANSFORMER_INFERENCE=1`.

CHECKPOINT may be pre-sharded, so that {gain}:

    reshard CHECKPOINT --tp {ranks} --format deepspeed --dtype {dtype} --output SHARDS
    python generate.py SHARDS --prompt "Once upon a time"

The same commands work for Megatron-LM's `mp_rank_*` files; DeepSpeed 0.19.8 has a loader for these, but never
calls it. {_WHOLE[graph.model_type in READS_ARCHIVES]}

The kernels reserve their KV cache once: for at most {plan.workload.batch_size} sequences in a batch, of at
most {longest} tokens.""",
    )
