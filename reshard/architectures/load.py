"""Loads the tables that come with the package; an unknown key is an error."""

import tomllib
from functools import cache
from importlib import resources

import msgspec

from .schema import Architecture


@cache
def families() -> dict[str, Architecture]:
    """File name without its ending → table, for every family that comes with the package.

    Raises:
        ValueError: a table with an unknown key, or two tables for one model type. Both are defects.
    """
    tables: dict[str, Architecture] = {}
    owners: dict[str, str] = {}
    folder = resources.files(__package__)
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".toml"):
            continue
        try:
            table = msgspec.convert(tomllib.loads(file.read_text("utf-8")), Architecture, strict=True)
        except (msgspec.ValidationError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"reshard/architectures/{file.name}: {error}") from error
        for model_type in table.model_types:
            if model_type in owners:
                raise ValueError(f"{file.name} and {owners[model_type]} both describe {model_type!r}")
            owners[model_type] = file.name
        tables[file.name.removesuffix(".toml")] = table
    return tables


def for_model_type(model_type: str) -> Architecture | None:
    """The table of the family with this `model_type`; None where the package has none."""
    return next((t for t in families().values() if model_type in t.model_types), None)
