"""The interface of every quantized format: what replaces a weight, and what the configuration contains."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from reshard.encoding import Encoder
from reshard.formats.base import Source
from reshard.tensors import LogicalTensor

from ..select import Decision


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """A format, for one scheme.

    Attributes:
        name: by which a request names it, such as `compressed-tensors`.
        target: the format of `reshard` that its files have.
        derived: a weight's name and description → the tensors that are stored in its place.
        encoder: makes the encoder of a weight.
        config: what the checkpoint's configuration says under `quantization_config`; None: nothing.
        notes: from the checkpoint to who loads it, and how.
    """

    name: str
    target: str
    derived: Callable[[str, LogicalTensor], dict[str, LogicalTensor]]
    encoder: Callable[[str, LogicalTensor], Encoder]
    config: Callable[[Source, Mapping[str, Decision]], dict[str, Any] | None]
    notes: Callable[[Source], tuple[str, ...]] = lambda _: ()
