"""A model by what a user calls it, or as a plan recorded it, with its graph."""

from planner.errors import InvalidInputError, ModelError, UnknownNameError
from planner.graph.model import Model
from planner.models.resolve import resolve
from planner.schema.plan import ModelRef
from planner.tracing.store import graph_for


def load_model(name: str, *, trust_remote_code: bool = False, revision: str | None = None) -> Model:
    """The model that a name means, traced without weights.

    A shipped model needs neither network nor torch; another is traced once and kept in the user's cache.

    Args:
        name: a short name, a folder with a `config.json`, or a hub id `org/name`.
        trust_remote_code: whether Python code that comes with the model may be imported.
        revision: of a hub's repository: a commit, tag or branch; the default branch for None.

    Raises:
        UnknownNameError: the name is none of these.
        ModelError: its configuration cannot be read or used.
        TraceError: it cannot be built or traced without weights.
    """
    spec = resolve(name, trust_remote_code=trust_remote_code, revision=revision)
    return Model.of(spec, graph_for(spec))


def load_recorded(ref: ModelRef, *, name: str | None = None) -> Model:
    """The model of a plan, wherever it lies.

    Args:
        ref: as the plan records it.
        name: where it is now, if it has moved; None: where it was when it was planned.

    Raises:
        ModelError: it is not there any more, or cannot be used.
        InvalidInputError: what is there has another configuration.
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
