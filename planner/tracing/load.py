"""Loads a model with its graph, by a name that the user gives or from the record in a plan."""

from planner.errors import InvalidInputError, ModelError, UnknownNameError
from planner.graph.model import Model
from planner.models.resolve import resolve
from planner.schema.plan import ModelRef
from planner.tracing.store import graph_for


def load_model(name: str, *, trust_remote_code: bool = False, revision: str | None = None) -> Model:
    """The model that a name refers to, traced without weights.

    A shipped model needs neither network nor torch; another one is traced once and cached in the user's
    folder.

    Args:
        name: a short name, a folder with a `config.json`, or a hub id `org/name`.
        trust_remote_code: whether Python code that comes with the model may be imported.
        revision: commit, tag or branch of a hub repository; the default branch for None.

    Raises:
        UnknownNameError: the name is neither a short name, a folder nor a hub id.
        ModelError: its configuration cannot be read or used.
        TraceError: it cannot be built or traced without weights.
    """
    spec = resolve(name, trust_remote_code=trust_remote_code, revision=revision)
    return Model.of(spec, graph_for(spec))


def load_recorded(ref: ModelRef, *, name: str | None = None) -> Model:
    """The model of a plan.

    Args:
        ref: the reference to the model in the plan.
        name: folder or hub id, if the model has been moved since; None for where it was planned from.

    Raises:
        ModelError: there is no model any more, or it cannot be used.
        InvalidInputError: the model has another configuration than the planned one.
    """
    try:
        model = load_model(name or ref.source or ref.name, revision=None if name else ref.revision)
    except (ModelError, UnknownNameError) as error:
        if name is not None:
            raise
        raise ModelError(
            f"the plan's model {ref.name} is not where it was planned from ({error}); name its folder or id"
        ) from error
    if model.graph.config_sha256 != ref.config_sha256:
        raise InvalidInputError(
            f"{name or ref.source or ref.name} is not the model that was planned ({ref.name}): its "
            "configuration differs"
        )
    return model
