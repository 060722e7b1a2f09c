"""`planner graph`: shows a summary of a model's modules, or writes the whole graph to a file."""

from collections.abc import Sequence
from pathlib import Path

import click

from planner.graph.export import export
from planner.graph.schema import ModuleGraph
from planner.graph.summary import BlockKind, GraphSummary, summarise
from planner.models.resolve import resolve
from planner.sizes import format_bytes, format_count, format_flops
from planner.tracing.store import graph_for

from ..completion import models
from ..options import output_options
from ..render import Column, show_facts, show_json, show_table, show_text


@click.command(name="graph")
@click.option(
    "--model",
    required=True,
    shell_complete=models,
    help="Short name, folder with a config.json, or hub id.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the graph as .json, .graphml or .svg.")
@click.option("--trust-remote-code", is_flag=True, help="Allow Python code that comes with the model to run.")
@output_options
def command(model: str, out: Path | None, trust_remote_code: bool, as_json: bool) -> None:
    """Show the modules, no-split blocks and costs of a model, or write its module graph to a file."""
    spec = resolve(model, trust_remote_code=trust_remote_code)
    graph = graph_for(spec)
    if out is not None:
        _write(graph, out, as_json=as_json)
        return
    summary = summarise(graph)
    if as_json:
        show_json(summary)
    else:
        _show(spec.name, summary)


def _write(graph: ModuleGraph, out: Path, *, as_json: bool) -> None:
    export(graph, out)
    if as_json:
        show_json({"out": out, "num_modules": len(graph.nodes), "num_edges": len(graph.edges)})
    else:
        show_text(f"Wrote {len(graph.nodes)} modules and {len(graph.edges)} edges to {out}.")


def _show(name: str, summary: GraphSummary) -> None:
    versions = ", ".join(f"{library} {version}" for library, version in sorted(summary.versions.items()))
    facts = (
        ("class", summary.model_class),
        ("parameters", f"{summary.num_parameters:,}"),
        ("modules", f"{summary.num_modules:,}"),
        ("KV cache", f"{format_bytes(summary.kv_bytes_per_token)} per token of context, at 2 bytes"),
        ("traced with", versions),
    )
    show_facts(facts, title=name)
    _show_blocks(summary.block_kinds)
    show_table(
        (
            Column("outside blocks", wraps=True),
            Column("class"),
            Column("parameters", is_number=True),
        ),
        [(part.fqn, part.class_name, format_count(part.num_parameters)) for part in summary.outside],
    )
    show_text(*_constraints(summary))


def _show_blocks(kinds: Sequence[BlockKind]) -> None:
    columns = [
        Column("no-split blocks", wraps=True),
        Column("class"),
        Column("each", is_number=True),
        Column("KV/token", is_number=True),
        Column("FLOPs/token", is_number=True),
    ]
    if any(kind.kv_window is not None for kind in kinds):
        columns.append(Column("window", is_number=True))
    show_table(columns, [_block_row(kind)[: len(columns)] for kind in kinds])


def _block_row(kind: BlockKind) -> tuple[str, ...]:
    number = f"{len(kind.fqns)} × " if len(kind.fqns) > 1 else ""
    return (
        number + _range(kind.fqns),
        kind.class_name,
        format_count(kind.num_parameters),
        format_bytes(kind.kv_bytes_per_token) if kind.kv_bytes_per_token else "",
        format_flops(kind.decode_flops) if kind.decode_flops else "",
        "" if kind.kv_window is None else f"{kind.kv_window:,}",
    )


def _range(fqns: tuple[str, ...]) -> str:
    """The first and the last name; their common prefix is written once if only the last part differs."""
    first, last = fqns[0], fqns[-1]
    if len(fqns) == 1:
        return first
    prefix, _, index = last.rpartition(".")
    return f"{first} … {index}" if first.rpartition(".")[0] == prefix else f"{first} … {last}"


def _constraints(summary: GraphSummary) -> list[str]:
    lines = [f"must share a device: {', '.join(group)}" for group in summary.co_located]
    lines += [f"tied tensors: {' = '.join(group)}" for group in summary.ties]
    lines += [f"not solved by any placement: {leak}" for leak in summary.leaks]
    return lines or ["No modules outside the blocks must share a device, and no tensors are tied."]
