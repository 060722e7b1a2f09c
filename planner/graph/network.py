"""The module graph as networkx sees it: a DiGraph to read and export."""

from typing import Any

import networkx as nx

from planner.graph.schema import ModuleGraph, Node


def to_networkx(graph: ModuleGraph) -> "nx.DiGraph[str]":
    """The modules as a DiGraph.

    Nodes are fqns with scalar attributes: class, execution order, block, number of parameters, and costs of
    one token at batch 1; edges have `bytes_per_token`. Attributes of the graph name the model that was
    traced.
    """
    result: nx.DiGraph[str] = nx.DiGraph(
        model_class=graph.model_class,
        model_type=graph.model_type,
        config_sha256=graph.config_sha256,
        num_parameters=graph.num_parameters,
        blocks=list(graph.blocks),
        co_located=[list(group) for group in graph.co_located],
        ties=[list(group) for group in graph.ties],
    )
    for node in graph.nodes:
        result.add_node(node.name, **_attributes(node))
    for edge in graph.edges:
        result.add_edge(edge.source, edge.target, bytes_per_token=edge.bytes_per_token)
    return result


def _attributes(node: Node) -> dict[str, Any]:
    costs = node.costs.get("2")
    return {
        "class_name": node.class_name,
        "order": node.order,
        "block": node.block or "",
        "num_calls": node.num_calls,
        "num_parameters": sum(t.num_elements for t in node.tensors if t.kind == "parameter"),
        "num_ops_prefill": costs.prefill.num_ops if costs else 0,
        "num_ops_decode": costs.decode.num_ops if costs else 0,
        "flops_per_token": costs.prefill.flops(batch=1, prompt=1) if costs else 0.0,
        "kv_bytes_per_token": node.kv.per_token if node.kv else 0.0,
    }
