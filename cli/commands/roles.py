"""`planner roles`: derives from a model's operations how its weights can be sharded over ranks."""

from pathlib import Path

import click

import reshard.roles as files
from planner.files import write_atomically
from planner.models.resolve import resolve
from planner.tensor_parallel.partition_report import Derivation, PartitionReport, WeightLine, derivation

from ..completion import models
from ..options import output_options
from ..render import Column, show_json, show_table, show_text

_COLUMNS = (
    Column("weights", wraps=True),
    Column("role"),
    Column("dim", is_number=True),
    Column("groups", is_number=True),
    Column("cut", is_number=True),
    Column("summed by", wraps=True),
)


@click.command(name="roles")
@click.option(
    "--model",
    required=True,
    shell_complete=models,
    help="Short name, folder with a config.json, or hub id.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the roles file for `reshard --roles`.")
@click.option("--trust-remote-code", is_flag=True, help="Allow Python code that comes with the model to run.")
@output_options
def command(model: str, out: Path | None, trust_remote_code: bool, as_json: bool) -> None:
    """Derive from a model's operations how its weights can be sharded over ranks."""
    spec = resolve(model, trust_remote_code=trust_remote_code)
    found = derivation(spec)
    if out is not None:
        write_atomically(out, files.encode(found.file))
    if as_json:
        show_json(found.report)
        return
    _show(spec.name, found)
    if out is not None:
        show_text(f"Wrote {out}.")


def _show(name: str, found: Derivation) -> None:
    report = found.report
    show_table(_COLUMNS, [_row(line) for line in report.lines], title=f"{name}: {report.model_class}")
    show_text(*_notes(report))


def _row(line: WeightLine) -> tuple[str, ...]:
    meets = "" if line.meets == line.name else _beside(line.meets, line.name)
    return (line.name, line.role, str(line.dim), f"{line.num_groups:,}", f"{line.sharded:.0%}", meets)


def _beside(name: str, other: str) -> str:
    """A name without the modules that also contain the other name."""
    parts, others = name.split("."), other.split(".")
    shared = 0
    # A layer number in one pattern may be `*` in the other.
    while shared < min(len(parts), len(others)) - 1 and (
        parts[shared] == others[shared] or (parts[shared] == "*" and others[shared].isdecimal())
    ):
        shared += 1
    return ".".join(["…" if shared else "", *parts[shared:]]).removeprefix(".")


def _notes(report: PartitionReport) -> list[str]:
    if not report.lines:
        return ["No weight can be sharded: none sums over features that can be on different ranks."]
    notes = ["Every other parameter is replicated on every rank; an all-reduce follows each row."]
    notes += [f"injection policy: {block}: {', '.join(names)}" for block, names in report.policy.items()]
    if report.bias_once:
        notes.append(f"biases added once, after the all-reduce: {', '.join(report.bias_once)}")
    if report.replicated:
        notes.append(f"partly replicated, so that others can be sharded: {', '.join(report.replicated)}")
    if report.constants:
        notes.append(f"contain a tensor of heads that is not a parameter: {', '.join(report.constants)}")
    if report.unknown:
        notes.append(f"operations without a rule, whose inputs are not sharded: {', '.join(report.unknown)}")
    return notes
