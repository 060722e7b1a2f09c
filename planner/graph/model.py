"""A model with its name, configuration and graph: the input of planning. Pure."""

from dataclasses import dataclass

from planner.errors import InvalidInputError, ModelError
from planner.graph.schema import ModuleGraph
from planner.models.spec import ModelSpec
from planner.schema.notebook import ShownInNotebook
from planner.schema.plan import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(ShownInNotebook):
    """A model with its name, how to load it, and its graph.

    Attributes:
        name: what the user typed.
        auto_class: `causal-lm`, `seq2seq-lm` or `masked-lm`.
        dtype: dtype of its checkpoint, or None when the configuration does not state one.
        graph: its traced modules.
        spec: the configuration that was traced; None for a graph that was constructed directly.
    """

    name: str
    auto_class: str
    dtype: str | None
    graph: ModuleGraph
    spec: ModelSpec | None = None

    @classmethod
    def of(cls, spec: ModelSpec, graph: ModuleGraph) -> "Model":
        """The model of a specification and of the graph that was traced from it."""
        return cls(name=spec.name, auto_class=spec.auto_class, dtype=spec.dtype, graph=graph, spec=spec)

    @property
    def known_spec(self) -> ModelSpec:
        """The configuration, for callers that build the model again.

        Raises:
            ModelError: there is none, because the graph was constructed directly.
        """
        if self.spec is None:
            raise ModelError(f"{self.name} has no configuration, because its graph was constructed directly")
        return self.spec

    def check_lengths(self, prompt_tokens: int, new_tokens: int) -> None:
        """Check that the model has enough positions for a prompt and, where they follow it, the new tokens.

        Raises:
            InvalidInputError: the sequence would be longer than the model allows.
        """
        graph = self.graph
        follow = new_tokens if graph.generates and not graph.is_encoder_decoder else 0
        if graph.max_positions is not None and prompt_tokens + follow > graph.max_positions:
            given = f"a prompt of {prompt_tokens}"
            given += f" and {follow} new tokens are {prompt_tokens + follow}" if follow else " is longer"
            raise InvalidInputError(
                f"{self.name} takes sequences of up to {graph.max_positions} tokens; {given}: "
                "shorten `prompt_tokens` or `new_tokens`"
            )

    def ref(self) -> ModelRef:
        """The reference to this model that a plan records."""
        by_name = {node.name: node.class_name for node in self.graph.nodes}
        return ModelRef(
            name=self.name,
            auto_class=self.auto_class,
            model_class=self.graph.model_class,
            config_sha256=self.graph.config_sha256,
            num_parameters=self.graph.num_parameters,
            no_split=tuple(sorted({by_name[b] for b in self.graph.blocks if b in by_name})),
            source=None if self.spec is None else self.spec.location,
            revision=None if self.spec is None else self.spec.revision,
        )
