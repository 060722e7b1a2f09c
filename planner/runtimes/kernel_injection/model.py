"""What is particular to DeepSpeed's kernels: which models, dtypes and lengths they take, and their workspace.

Cuts, sums between ranks and fused operations are priced by the law that all tensor-parallel runtimes share.
"""

from dataclasses import replace

from planner.cost.runtime_model import Buffers, Scenario
from planner.graph.schema import ModuleGraph
from planner.runtimes.kernel_injection.families import (
    GPT_NEO_WINDOW,
    hidden_size,
    num_heads,
    unlike,
)
from planner.schema.workload import Workload
from planner.tensor_parallel.rules import KERNEL_INJECTION
from planner.tensor_parallel.runtime_model import TensorParallelRuntime


class KernelInjectionRuntime(TensorParallelRuntime):
    """See `planner.cost.runtime_model.RuntimeModel`."""

    name = KERNEL_INJECTION.name
    own_environment = "transformers 4.43 and a CUDA compiler"
    rules = KERNEL_INJECTION
    # The blocks themselves are other ones, so one GPU is worth pricing.
    least_ranks = 1

    def why_not(self, scenario: Scenario) -> str | None:
        """See `planner.cost.runtime_model.RuntimeModel.why_not`."""
        graph, workload = scenario.graph, scenario.workload
        if workload.dtype != "float16":
            return f"its kernels were found to compute these models in float16, not in {workload.dtype}"
        reason = unlike(graph)
        if reason is not None:
            return reason
        longest = max_out_tokens(workload)
        if graph.model_type == "gpt_neo" and longest >= GPT_NEO_WINDOW:
            return (
                f"its kernel misplaces GPT-Neo's window of {GPT_NEO_WINDOW} tokens once a sequence fills it, "
                f"and {longest} are asked for"
            )
        if workload.prompt_tokens < 2:
            return "its kernels take a prompt of one token for the next token of the sequence before"
        return super().why_not(scenario)

    def buffers(self, scenario: Scenario) -> Buffers:
        """The workspace besides, which DeepSpeed reserves before the first token."""
        shared = super().buffers(scenario)
        own = workspace_bytes(scenario.graph, scenario.workload, scenario.execution.num_ranks)
        return replace(shared, workspace=shared.workspace + own)


def max_out_tokens(workload: Workload) -> int:
    """The longest sequence, prompt and new tokens together, which DeepSpeed reserves its cache for."""
    return workload.prompt_tokens + workload.new_tokens


def workspace_bytes(graph: ModuleGraph, workload: Workload, num_ranks: int) -> int:
    """Bytes that DeepSpeed takes from CUDA besides the KV cache that the graph counts.

    Ten activations of the whole width and one matrix of scores, for every sequence and the longest one; and
    where the cache is the kernels' own (everywhere but in BLOOM), the features that fill heads up to 32, 64
    or 128. Source: `GenWorkSpace` in csrc/transformer/inference/includes/inference_context.h, 0.19.8.
    """
    heads, hidden = num_heads(graph), hidden_size(graph)
    head = hidden // heads
    padded = next((size for size in (32, 64, 128) if head <= size), head)
    tokens, batch = max_out_tokens(workload), workload.batch_size
    activations = 10 * heads * padded
    scores = heads // num_ranks * tokens
    cache = 0 if graph.model_type == "bloom" else 2 * len(graph.blocks) * heads * (padded - head) // num_ranks
    return (activations + scores + cache) * batch * tokens * workload.itemsize_bytes


RUNTIME_MODEL = KernelInjectionRuntime()
