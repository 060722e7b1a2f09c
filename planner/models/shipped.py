"""The configurations in the package: one JSON per model, and a table of published parameter counts."""

import functools
import json
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final

import msgspec

from planner.models.config import auto_class_of, dtype_of
from planner.models.spec import ModelSpec, PublishedCount, config_sha256

_FOLDER: Final = "shipped"
_COUNTS: Final = "published_counts.json"


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the table: `hub_id` is None for a model whose weights are not on the hub."""

    hub_id: str | None
    published: PublishedCount


@functools.cache
def _table() -> dict[str, _Entry]:
    return msgspec.json.decode((_data() / _COUNTS).read_bytes(), type=dict[str, _Entry])


def _data() -> Traversable:
    return resources.files("planner.models")


def shipped_names() -> tuple[str, ...]:
    """Every short name, ordered by family and then by size."""
    return tuple(_table())


def shipped_name(name: str) -> str | None:
    """The short name for `name`, which is a short name or hub id in any case; None when there is none."""
    wanted = name.lower()
    for short, entry in _table().items():
        if wanted == short or (entry.hub_id is not None and wanted == entry.hub_id.lower()):
            return short
    return None


def hub_id(short: str) -> str | None:
    """Hub id of the weights of the shipped model `short`; None when they are not on the hub.

    Raises:
        KeyError: no such model.
    """
    return _table()[short].hub_id


def shipped_spec(short: str) -> ModelSpec:
    """The specification of the shipped model `short`.

    Raises:
        KeyError: no such model.
    """
    entry = _table()[short]
    config = shipped_config(short)
    auto_class = auto_class_of(config, short)
    return ModelSpec(
        name=short,
        origin="shipped",
        config=config,
        config_sha256=config_sha256(config, auto_class),
        auto_class=auto_class,
        hub_id=entry.hub_id,
        dtype=dtype_of(config, short),
        published=entry.published,
    )


def shipped_config(short: str) -> dict[str, Any]:
    """The configuration of the shipped model `short`, read from its file at each call."""
    config: dict[str, Any] = json.loads((_data() / _FOLDER / f"{short}.json").read_text(encoding="utf-8"))
    return config
