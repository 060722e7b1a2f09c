"""Which models DeepSpeed's tensor parallelism cuts correctly: model types that were run, and a rule. Pure.

Source: deepspeed.module_inject.auto_tp and fusedqkv_utils (0.19.8).
"""

from typing import Final

from planner.graph.schema import ModuleGraph, Node
from planner.tensor_parallel.policy import injection_policy, relative_name

# fmt: off
#: Model types in which DeepSpeed finds the row-parallel Linears by itself and cuts fused ones correctly. Each
#: was run at degrees 2 and 4 with transformers 5.23 and gave the plain model's logits.
AUTO_TP_MODEL_TYPES: Final = frozenset({
    "bert", "bloom", "codegen", "falcon", "gemma2", "gemma3_text", "gpt_bigcode", "gpt_neo", "gpt_neox",
    "gptj", "llama", "mistral", "mpt", "opt", "phi", "phi3", "qwen2", "qwen3", "stablelm", "t5",
})
# fmt: on
#: Names of fused Linears, whose rows are those of several weights. DeepSpeed knows their layout by the class
#: of the block; in a block of another class it cuts them as if they were one weight.
_FUSED: Final = ("qkv_proj", "query_key_value", "Wqkv", "W_pack", "c_attn", "gate_up_proj")
#: Groups of CodeGen's fused rows; every rank takes rows of each group.
_CODEGEN_GROUPS: Final = 4


def why_not(graph: ModuleGraph, degree: int) -> str | None:
    """Why DeepSpeed cannot run the model over `degree` ranks, as a clause; None when it can."""
    nodes = [node for node in graph.nodes if node.block in graph.blocks]
    transposed = next((node for node in nodes if node.class_name == "Conv1D"), None)
    if transposed is not None:
        return f"DeepSpeed cuts Linears, and {transposed.name} of {graph.model_class} is a Conv1D"
    if graph.model_type in AUTO_TP_MODEL_TYPES:
        return _family_refusal(graph, nodes, degree)
    return _other_refusal(graph, nodes)


def _family_refusal(graph: ModuleGraph, nodes: list[Node], degree: int) -> str | None:
    match graph.model_type:
        case "falcon" if not any(node.name.endswith(".ln_attn") for node in nodes):
            return "DeepSpeed cuts only Falcons of the newer layout, such as Falcon-40B, by heads"
        case "codegen":
            heads = min((n.tensor_parallel.num_groups for n in nodes if n.tensor_parallel), default=0)
            if heads % (_CODEGEN_GROUPS * degree):
                return (
                    f"DeepSpeed needs a multiple of {_CODEGEN_GROUPS * degree} heads, and CodeGen has {heads}"
                )
        case "gpt_bigcode":
            return None
    return _shared_refusal(nodes)


def _other_refusal(graph: ModuleGraph, nodes: list[Node]) -> str | None:
    """The rule for other model types: DeepSpeed may cut only Linears of one weight that can be cut."""
    if not injection_policy(graph):
        return f"no row-parallel Linear is known in the blocks of {graph.model_class}"
    for node in nodes:
        if not any(len(tensor.shape) > 1 for tensor in node.tensors if tensor.kind == "parameter"):
            continue
        if node.name.rpartition(".")[2] in _FUSED:
            return (
                f"DeepSpeed does not know the layout of the fused rows of {node.name} of {graph.model_class}"
            )
        is_whole = node.tensor_parallel is None
        if not node.class_name.endswith("Linear") and (not is_whole or "Embedding" in node.class_name):
            return f"DeepSpeed cuts Linears, and {node.name} is a module of class {node.class_name}"
        if node.class_name.endswith("Linear") and is_whole:
            return f"DeepSpeed would cut {node.name}, which every rank needs whole"
    mistaken_name = mistaken(graph)
    if mistaken_name is not None:
        return f"DeepSpeed would take {mistaken_name} for a row-parallel Linear of the same name"
    return _shared_refusal(nodes)


def _shared_refusal(nodes: list[Node]) -> str | None:
    for node in nodes:
        role = node.tensor_parallel
        if role is not None and role.role == "column" and role.sharded < 1.0:
            return f"DeepSpeed would cut the keys and values in {node.name}, of which every rank needs all"
    return None


def mistaken(graph: ModuleGraph) -> str | None:
    """A Linear that DeepSpeed would take for a row-parallel one of the same name; None when there is none."""
    policy = injection_policy(graph)
    class_of = dict(zip(graph.blocks, graph.block_classes, strict=True))
    for node in graph.nodes:
        if node.block not in class_of or (node.tensor_parallel and node.tensor_parallel.role == "row"):
            continue
        if relative_name(node.name, node.block) in policy.get(class_of[node.block], ()):
            return node.name
    return None
