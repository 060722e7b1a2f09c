"""How a model's tensors are cut, as data: for families that no table describes.

A roles file is JSON. It lists the parameters that ranks share out; every rank holds the others whole.

    {"schema_version": 1, "model_type": "cohere", "config_sha256": null,
     "weights": {"model.layers.*.self_attn.q_proj.weight": {"dim": 0, "groups": [[[0, 32]], [[32, 64]]]}},
     "bias_once": ["model.layers.*.self_attn.o_proj.bias"]}
"""

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from .errors import DamagedFileError
from .layout import Interval

#: The copy that goes with a set which was cut by roles.
FILE: Final = "reshard-roles.json"
VERSION: Final = 1


class WeightRoles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Along which index sets one parameter is cut.

    Attributes:
        dim: the dimension of the stored tensor.
        groups: for every group the half-open intervals of that dimension that are its share. Groups
            correspond by position in all parameters with equally many: group g of a projection's rows meets
            group g of the columns that follow. An index in no group is held by every rank. A rank's share is
            in ascending order, whatever order the intervals have here.
    """

    dim: Annotated[int, msgspec.Meta(ge=0)]
    groups: tuple[tuple[Interval, ...], ...]


class Roles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A roles file.

    Attributes:
        schema_version: of this form.
        model_type: the configuration's; a checkpoint of another family is refused.
        config_sha256: of the configuration that the roles were derived from, for the record: whether a
            checkpoint fits is decided by its shapes.
        weights: parameter, or pattern with `*` for the number of a layer or an expert → how it is cut. Rank r
            of T takes groups [r·G/T, (r+1)·G/T) of G. A parameter's own entry goes before a pattern.
        bias_once: parameters, or patterns, that every rank holds whole and that are added once, after the sum
            over ranks: biases of row-parallel weights.
    """

    schema_version: Literal[1] = VERSION
    model_type: str
    config_sha256: str | None = None
    weights: dict[str, WeightRoles]
    bias_once: tuple[str, ...] = ()


def encode(roles: Roles) -> bytes:
    """The canonical JSON: one text for one meaning of the fields, however the file was laid out."""
    return msgspec.json.encode(roles, order="deterministic") + b"\n"


def decode(raw: str | bytes, label: str) -> Roles:
    """The roles in `raw`; `label` names the file in messages.

    Raises:
        DamagedFileError: no roles, or of a later form.
    """
    try:
        version = msgspec.json.decode(raw, type=_RolesVersion).schema_version
        if version != VERSION:
            raise DamagedFileError(
                f"{label} has schema_version {version!r}, and this release reads {VERSION}; derive it again"
            )
        return msgspec.json.decode(raw, type=Roles)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise DamagedFileError(f"{label} is no roles file: {error}") from error


def read(path: Path) -> Roles:
    """The roles in a file.

    Raises:
        DamagedFileError: it is no roles file.
        OSError: it cannot be read.
    """
    return decode(path.read_bytes(), str(path))


def digest(roles: Roles) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(encode(roles)).hexdigest()


class _RolesVersion(msgspec.Struct):
    schema_version: object = None
