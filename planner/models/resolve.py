"""From what a user types to a `ModelSpec`: a short name, a folder, or a hub id, tried in that order."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from planner.errors import ModelError, UnknownNameError
from planner.models.config import auto_class_of, dtype_of, parse_config
from planner.models.shipped import shipped_name, shipped_names, shipped_spec
from planner.models.spec import ModelSpec, Origin, config_sha256

_CONFIG: Final = "config.json"


def resolve(name: str, *, trust_remote_code: bool = False, revision: str | None = None) -> ModelSpec:
    """The model that `name` refers to.

    A short name, or the hub id of a shipped model, needs neither network nor torch. To plan a folder that has
    the name of a shipped model, write `./gpt2`.

    Args:
        name: a short name (case does not matter), a folder with a `config.json`, or a hub id `org/name`.
        trust_remote_code: whether Python code that comes with the model may be imported later.
        revision: commit, tag or branch of a hub repository; the default branch for None.

    Raises:
        UnknownNameError: `name` is none of these; the nearest short names are in the message.
        ModelError: a folder or hub repository that cannot be used; the message says why.
    """
    short = shipped_name(name)
    if short is not None:
        return shipped_spec(short)
    path = Path(name).expanduser()
    if path.exists() or _looks_like_a_path(name):
        return _from_folder(path, trust_remote_code)
    if name.count("/") == 1 and all(name.split("/")):
        return _from_hub(name, trust_remote_code, revision)
    raise UnknownNameError(_unknown(name))


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.endswith(os.sep) or name.count("/") > 1


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), shipped_names(), n=3, cutoff=0.5)
    nearest = f"; the nearest are {', '.join(near)}" if near else ""
    return (
        f"unknown model {name!r}{nearest}. Give a name from `planner models list`, "
        f"a folder with a {_CONFIG}, or a hub id such as org/name"
    )


def _from_folder(folder: Path, trust_remote_code: bool) -> ModelSpec:
    if not folder.exists():
        raise ModelError(f"no folder {folder}: give the folder that holds the model's {_CONFIG}")
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file: give the folder that holds the model's {_CONFIG}")
    file = folder / _CONFIG
    if not file.is_file():
        raise ModelError(f"{folder} holds no {_CONFIG}, so it is not a model folder; check the path")
    resolved = folder.resolve()
    return _spec(
        resolved.name, "folder", _read(file), str(file), folder=resolved, trust_remote_code=trust_remote_code
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {file}: {error}") from error


def _from_hub(hub_id: str, trust_remote_code: bool, revision: str | None) -> ModelSpec:
    # Imported here, because only hub ids need the hub's client.
    from planner.models.hub import fetch_config

    fetched = fetch_config(hub_id, revision)
    return _spec(
        hub_id,
        "hub",
        fetched.text,
        f"the {_CONFIG} of {hub_id}",
        hub_id=hub_id,
        trust_remote_code=trust_remote_code,
        revision=fetched.revision,
    )


def _spec(
    name: str,
    origin: Origin,
    text: str,
    where: str,
    *,
    trust_remote_code: bool,
    hub_id: str | None = None,
    folder: Path | None = None,
    revision: str | None = None,
) -> ModelSpec:
    config = parse_config(text, where)
    auto_class = auto_class_of(config, where)
    if not trust_remote_code:
        _refuse_remote_code(config, where)
    return ModelSpec(
        name=name,
        origin=origin,
        config=config,
        config_sha256=config_sha256(config, auto_class),
        auto_class=auto_class,
        hub_id=hub_id,
        folder=folder,
        dtype=dtype_of(config, where),
        trust_remote_code=trust_remote_code,
        revision=revision,
    )


def _refuse_remote_code(config: Mapping[str, Any], where: str) -> None:
    if not config.get("auto_map"):
        return
    # Many published folders (Falcon, Phi-3) still contain code of a family that transformers supports by now;
    # transformers then uses its own class, and so does the planner. Imported here: other models need no
    # import.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        raise ModelError(
            f"{where} needs Python code that comes with the model (auto_map), as transformers has no "
            f"{config['model_type']!r}; read that code, then allow it with trust_remote_code"
        )
