"""The source of a graph: the package for shipped models, a cache on disk, or a trace."""

import hashlib
import logging
import os
from importlib import metadata, resources
from pathlib import Path
from typing import Final

from planner.errors import BadFileError
from planner.files import write_atomically
from planner.graph.compact import decode, encode
from planner.graph.schema import SCHEMA_VERSION, ModuleGraph
from planner.models.spec import ModelSpec

#: Overrides the cache's folder.
CACHE_VARIABLE: Final = "PLANNER_CACHE_DIR"

_logger: Final = logging.getLogger(__name__)


def graph_for(spec: ModelSpec, *, cache_dir: Path | None = None) -> ModuleGraph:
    """The graph of a model.

    A shipped model's graph is in the package and is used for every model with the same configuration, without
    importing torch. Any other graph is traced once and cached by configuration and versions of the libraries;
    a damaged cache entry is logged, traced again and replaced.

    Args:
        spec: the model, from `planner.models.resolve`.
        cache_dir: folder of the cache; for None `$PLANNER_CACHE_DIR`, else the user's cache folder.

    Raises:
        TraceError: the model's forward cannot be traced.
        ModelError: transformers cannot build the model.
    """
    shipped = shipped_graph(spec)
    if shipped is not None:
        return shipped
    path = (cache_dir or _cache_dir()) / f"{_key(spec)}.json"
    cached = _read_cached(path)
    if cached is not None:
        return cached
    graph = decode(encode(trace_spec(spec)))
    try:
        write_atomically(path, encode(graph))
    except OSError as error:
        _logger.warning("cannot write the graph cache %s: %s", path, error.strerror)
    return graph


def shipped_graph(spec: ModelSpec) -> ModuleGraph | None:
    """The packaged graph of a model with exactly this configuration, or None."""
    name = _shipped_index().get(spec.config_sha256)
    if name is None:
        return None
    payload = _folder().joinpath(f"{name}.json").read_bytes()
    return decode(payload, origin=f"the shipped graph {name}")


def trace_spec(spec: ModelSpec) -> ModuleGraph:
    """Trace a model without using the cache. Imports torch and transformers."""
    from planner.models.build import build
    from planner.tracing.trace import trace

    config, model_class = build(spec)
    return trace(
        config,
        model_class,
        config_sha256=spec.config_sha256,
        generates=spec.auto_class != "masked-lm",
    )


def _folder() -> "resources.abc.Traversable":
    return resources.files("planner.tracing") / "shipped"


def _shipped_index() -> dict[str, str]:
    """Configuration hash → name, from one small file, so that only a matching graph is read."""
    import json

    index = _folder().joinpath("index.json")
    if not index.is_file():
        return {}
    name_of_hash: dict[str, str] = json.loads(index.read_bytes())
    return name_of_hash


def _cache_dir() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("offload-planner") / "graphs"


def _key(spec: ModelSpec) -> str:
    """Hash of everything a trace depends on: the configuration, the libraries, the file format."""
    parts = [spec.config_sha256, str(SCHEMA_VERSION)]
    parts += [f"{name}={metadata.version(name)}" for name in ("torch", "transformers", "offload-planner")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_cached(path: Path) -> ModuleGraph | None:
    try:
        return decode(path.read_bytes(), origin=f"the cached graph {path}")
    except FileNotFoundError:
        return None
    except (BadFileError, OSError) as error:
        _logger.warning("%s; tracing again", error)
        return None
