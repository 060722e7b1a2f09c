"""The runtime model of DeepSpeed's kernels: models, dtypes and lengths they support, and their workspace.

Shards, all-reduces and fused operations are priced by the model that all tensor-parallel runtimes share.
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
    # One GPU is worth pricing too, because DeepSpeed replaces the blocks there as well.
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
        """Those of all tensor-parallel runtimes, and the workspace that DeepSpeed reserves."""
        shared = super().buffers(scenario)
        kernels = workspace_bytes(scenario.graph, scenario.workload, scenario.execution.num_ranks)
        return replace(shared, workspace=shared.workspace + kernels)


def max_out_tokens(workload: Workload) -> int:
    """Tokens of the longest sequence, prompt and new ones, for which DeepSpeed reserves its cache."""
    return workload.prompt_tokens + workload.new_tokens


def workspace_bytes(graph: ModuleGraph, workload: Workload, num_ranks: int) -> int:
    """Bytes that DeepSpeed allocates besides the KV cache that the graph counts.

    Ten activations of the whole width and one matrix of scores, for every sequence at the largest length; and
    where the cache is the kernels' own (everywhere but in BLOOM), the features that pad heads to 32, 64 or
    128. Source: `GenWorkSpace` in csrc/transformer/inference/includes/inference_context.h, 0.19.8.

    Args:
        graph: the model, or one rank's part of it.
        workload: gives batch, lengths and element size.
        num_ranks: ranks over which heads are sharded.
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
