"""The output of `planner roles`: one line per kind of weight."""

import msgspec

import reshard.roles as files
from planner.graph.schema import ModuleGraph
from planner.models.spec import ModelSpec
from planner.tensor_parallel.patterns import folded, pattern_of
from planner.tensor_parallel.policy import injection_policy
from planner.tensor_parallel.roles_file import export
from planner.tracing.partition.schema import PartitionSpec
from planner.tracing.store import graph_for


class WeightLine(msgspec.Struct, frozen=True, kw_only=True):
    """Weights that are cut alike.

    Attributes:
        name: a parameter, or a pattern with `*` for numbers.
        role: `column`, `row` or `elementwise`.
        dim: the dimension that is cut.
        num_groups: groups of features that can be on different ranks; a degree works when it divides them.
        sharded: fraction of the weight that is cut.
        meets: the row-parallel weight that sums over these groups.
    """

    name: str
    role: str
    dim: int
    num_groups: int
    sharded: float
    meets: str


class PartitionReport(msgspec.Struct, frozen=True, kw_only=True):
    """The roles of a model, for people and scripts.

    Attributes:
        model_class: the transformers class.
        lines: one for each kind of weight.
        bias_once: biases that are added once, after the all-reduce.
        replicated: weights with outputs that every rank holds, so that other weights can be cut.
        constants: modules with a tensor that is not a parameter and is cut with the heads.
        policy: DeepSpeed's injection policy: class of block → row-parallel Linears.
        unknown: operations without a rule; the features that they combine are kept on one rank.
    """

    model_class: str
    lines: tuple[WeightLine, ...]
    bias_once: tuple[str, ...]
    replicated: tuple[str, ...]
    constants: tuple[str, ...]
    policy: dict[str, tuple[str, ...]]
    unknown: tuple[str, ...]


class Derivation(msgspec.Struct, frozen=True, kw_only=True):
    """A report and the file that `reshard --roles` reads."""

    report: PartitionReport
    file: files.Roles


def derivation(spec: ModelSpec) -> Derivation:
    """Traces a model and derives its roles. Imports torch and transformers.

    Raises:
        TraceError: the model cannot be built or traced without weights.
    """
    from planner.tracing.partition.of_spec import partition_of

    roles, names = partition_of(spec)
    file = export(roles, names, config_sha256=spec.config_sha256)
    return Derivation(report=_report(roles, names, file, graph_for(spec)), file=file)


def _report(roles: PartitionSpec, names: list[str], file: files.Roles, graph: ModuleGraph) -> PartitionReport:
    lines = {
        name: WeightLine(
            name=name,
            role=role.role,
            dim=role.dim,
            num_groups=role.num_groups,
            sharded=role.sharded,
            meets=pattern_of(role.meets),
        )
        for name, role in roles.parameters.items()
    }
    keys = {n: (line.role, line.dim, line.num_groups, line.sharded, line.meets) for n, line in lines.items()}
    return PartitionReport(
        model_class=graph.model_class,
        lines=tuple(msgspec.structs.replace(line, name=n) for n, line in folded(lines, keys, names).items()),
        bias_once=file.bias_once,
        replicated=tuple(dict.fromkeys(map(pattern_of, roles.replicated))),
        constants=tuple(dict.fromkeys(map(pattern_of, roles.constants))),
        policy=injection_policy(graph),
        unknown=tuple(sorted(roles.unknown)),
    )
