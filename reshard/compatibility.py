"""Which formats, and so which loaders, can hold a model at a degree: every writer is tried."""

import msgspec

from .errors import CheckpointError
from .formats.base import Options, Source
from .formats.registry import targets
from .roles import Roles


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a format can hold a model at a degree.

    Attributes:
        format: its name.
        tp_size: the degree.
        is_possible: whether it can hold the model.
        says: who loads it then, and how; or why it cannot.
    """

    format: str
    tp_size: int
    is_possible: bool
    says: str


def ask_formats(source: Source, tp_size: int, roles: Roles | None = None) -> tuple[Answer, ...]:
    """Try every format that can be written.

    Args:
        source: the checkpoint.
        tp_size: the degree.
        roles: for formats that take some.
    """
    return tuple(_ask(name, source, tp_size, roles) for name in targets() if name != "huggingface")


def _ask(name: str, source: Source, tp_size: int, roles: Roles | None) -> Answer:
    asked = targets()[name]
    assert asked.write is not None
    try:
        layout = asked.write(source, Options(tp_size=tp_size, roles=roles if asked.takes_roles else None))
    except CheckpointError as error:
        return Answer(format=name, tp_size=tp_size, is_possible=False, says=str(error))
    return Answer(format=name, tp_size=tp_size, is_possible=True, says="; ".join(layout.notes))
