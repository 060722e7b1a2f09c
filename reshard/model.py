"""What a checkpoint's configuration says of its model: family and geometry. No torch."""

import json
from typing import Any, Final

import msgspec

from .architectures import Architecture, Choice, for_model_type
from .errors import DamagedFileError, UnknownArchitectureError

#: No model has as many of anything that is counted here; a larger number is damage.
_LARGEST_EXTENT: Final = 1 << 24


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """The extents that decide how tensors are cut.

    Attributes:
        heads: attention heads.
        kv_heads: key and value heads.
        head_dim: elements of one head.
        hidden: features between the blocks.
        vocab: tokens, as the configuration has it; checkpoints may hold more rows.
        layers: blocks.
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    layers: int


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration with the table of its family.

    Attributes:
        config: `config.json`.
        table: the family's; None where the package has none.
        geometry: its extents; None where the package has no table.
    """

    config: dict[str, Any]
    table: Architecture | None
    geometry: Geometry | None

    @property
    def model_type(self) -> str:
        """The configuration's `model_type`."""
        return str(self.config.get("model_type", ""))

    @property
    def is_tied(self) -> bool:
        """Whether head and embedding are one tensor. transformers' default is that they are."""
        default = self.table.defaults.get("tie_word_embeddings", True) if self.table else True
        return bool(self.config.get("tie_word_embeddings", default))

    def known(self) -> tuple[Architecture, Geometry]:
        """Table and geometry.

        Raises:
            UnknownArchitectureError: the package has no table for this `model_type`.
        """
        if self.table is None or self.geometry is None:
            raise UnknownArchitectureError(
                f"model type {self.model_type!r} is unknown; add "
                f"reshard/architectures/{self.model_type or 'family'}.toml, which says what each module is, "
                "or derive a roles file with `planner roles` and give it as `roles`"
            )
        return self.table, self.geometry


def parse_model(raw: bytes, name: str) -> Model:
    """The model that the `config.json` in `raw` describes; `name` is for messages.

    Raises:
        DamagedFileError: no configuration, or without a number that the family's table needs.
    """
    try:
        config = json.loads(raw)
        # Half a surrogate pair can be read, but not written again.
        json.dumps(config, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{name} is no JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise DamagedFileError(f"{name} is no model configuration: it has no model_type")
    if not isinstance(config.get("quantization_config"), dict | None):
        raise DamagedFileError(f"{name} has a quantization_config that is no object")
    table = for_model_type(config["model_type"])
    if table is None:
        return Model(config=config, table=None, geometry=_generic_geometry(config))
    return Model(config=config, table=table, geometry=_geometry(config, table, name))


def with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The configuration of the same model with its weights in the dtype called `name`."""
    # transformers 5 writes the first, older releases the second; loaders use whichever they find.
    spelt = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    return {**config, **dict.fromkeys(spelt, name)}


def holds(config: dict[str, Any], table: Architecture, when: dict[str, Any]) -> bool:
    """Whether the configuration, with its family's defaults, has every value of `when`.

    Args:
        config: `config.json`.
        table: the family's.
        when: key → value that it must have.
    """
    return all(config.get(key, table.defaults.get(key)) == value for key, value in when.items())


def _geometry(config: dict[str, Any], table: Architecture, name: str) -> Geometry:
    def look(extent: str) -> int | None:
        return _extent(config, table, extent, name)

    def need(extent: str) -> int:
        value = look(extent)
        if value is None:
            tried = table.geometry.get(extent, extent)
            raise DamagedFileError(f"{name} does not say the model's {extent}: it has no usable {tried}")
        return value

    heads, hidden = need("heads"), need("hidden")
    return Geometry(
        heads=heads,
        kv_heads=look("kv_heads") or heads,
        head_dim=look("head_dim") or hidden // heads,
        hidden=hidden,
        vocab=need("vocab"),
        layers=need("layers"),
    )


def _extent(config: dict[str, Any], table: Architecture, extent: str, name: str) -> int | None:
    entry = table.geometry.get(extent)
    tried = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
    for option in tried:
        choice = option if isinstance(option, Choice) else Choice(value=option)
        if not holds(config, table, choice.when):
            continue
        named = choice.value
        value = config.get(named, table.defaults.get(named)) if isinstance(named, str) else named
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= _LARGEST_EXTENT:
            raise DamagedFileError(f"{name} has {named} = {value!r}, which is no number of {extent}")
        return value
    return None


def _generic_geometry(config: dict[str, Any]) -> Geometry | None:
    """Of a family without a table, under the names that most configurations use."""
    names = ("num_attention_heads", "hidden_size", "vocab_size", "num_hidden_layers")
    heads, hidden, vocab, layers = (config.get(n) for n in names)
    if not all(type(value) is int and value > 0 for value in (heads, hidden, vocab, layers)):
        return None
    assert isinstance(heads, int)
    assert isinstance(hidden, int)
    return Geometry(
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        hidden=hidden,
        vocab=int(vocab or 0),
        layers=int(layers or 0),
    )
