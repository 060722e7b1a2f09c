"""A model as a plan needs it: by name, with its graph. Pure."""

from dataclasses import dataclass

from planner.graph.schema import ModuleGraph
from planner.plan import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as a plan needs it: its name, how to load it, and its graph.

    Attributes:
        name: what the user typed.
        auto_class: `causal-lm`, `seq2seq-lm` or `masked-lm`.
        dtype: what its checkpoint is saved in, or None.
        graph: traced.
    """

    name: str
    auto_class: str
    dtype: str | None
    graph: ModuleGraph

    def ref(self) -> ModelRef:
        """As a plan records it."""
        by_name = {node.name: node.class_name for node in self.graph.nodes}
        return ModelRef(
            name=self.name,
            auto_class=self.auto_class,
            model_class=self.graph.model_class,
            config_sha256=self.graph.config_sha256,
            num_parameters=self.graph.num_parameters,
            no_split=tuple(sorted({by_name[b] for b in self.graph.blocks if b in by_name})),
        )
