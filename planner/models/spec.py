"""Specification of a model before anything is built: its configuration and the origin of it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from planner.schema.quantity import Source

AutoClass = Literal["causal-lm", "seq2seq-lm", "masked-lm"]
Origin = Literal["shipped", "folder", "hub"]

# Keys that describe how a configuration was saved or loaded, and not what is computed. Token ids, dropout
# rates and `use_cache` are hashed: an unnecessary difference costs one trace, a wrong match gives wrong
# costs. `architectures` is not, because the auto class that it selects is hashed instead.
_BOOKKEEPING: Final = frozenset(
    {"transformers_version", "torch_dtype", "dtype", "architectures", "auto_map", "task_specific_params"}
)


class PublishedCount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Number of parameters that a model's publishers, or independent readers of its checkpoint, state.

    Attributes:
        num_parameters: parameters of the class that is planned, each tied tensor counted once.
        source: `published` when an exact number was found outside this project, else `assumed`.
        where: who states it.
        note: how it differs from other published numbers, or why it is assumed.
    """

    num_parameters: int
    source: Source
    where: str
    note: str = ""

    def __post_init__(self) -> None:
        if self.num_parameters <= 0:
            raise ValueError(f"num_parameters must be positive, not {self.num_parameters}")


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model, specified by its configuration.

    Attributes:
        name: the short name, the folder's name or the hub id.
        origin: where the configuration was read.
        config: the content of `config.json`.
        config_sha256: hash of `config` and `auto_class`; see the function `config_sha256`.
        auto_class: which of transformers' auto classes builds it.
        hub_id: the repository that holds weights; None for a folder and for an unreleased model.
        folder: the local folder; None unless `origin` is "folder".
        dtype: torch's name of the checkpoint's dtype; None when the configuration does not state it.
        published: the published parameter count of a shipped model, else None.
        trust_remote_code: whether the user allows the Python code that comes with the model to run.
        revision: the commit of the hub repository that the configuration was read from, or None.
    """

    name: str
    origin: Origin
    config: dict[str, Any]
    config_sha256: str
    auto_class: AutoClass
    hub_id: str | None = None
    folder: Path | None = None
    dtype: str | None = None
    published: PublishedCount | None = None
    trust_remote_code: bool = False
    revision: str | None = None

    @property
    def location(self) -> str:
        """A name that `resolve` accepts in any working directory: a short name, absolute path, or hub id."""
        return str(self.folder) if self.folder is not None else self.name

    @property
    def model_type(self) -> str:
        """Transformers' name of the architecture family."""
        return str(self.config["model_type"])


def config_sha256(config: Mapping[str, Any], auto_class: AutoClass) -> str:
    """Hash of an architecture: equal for two configurations that differ only in how they were saved.

    The hash is of the JSON with keys sorted, without private keys (a leading underscore) and without
    bookkeeping (version, dtype, remote-code map, architectures), at every depth, and of the auto class.

    Returns:
        64 hexadecimal digits.
    """
    content = {"auto_class": auto_class, "config": _architecture_only(config)}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _architecture_only(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _architecture_only(item)
            for key, item in value.items()
            if key not in _BOOKKEEPING and not key.startswith("_")
        }
    if isinstance(value, list | tuple):
        return [_architecture_only(item) for item in value]
    return value
