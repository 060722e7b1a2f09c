"""`import reshard`: names that are there without importing anything, and stay what they are."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import reshard

_REPOSITORY = Path(__file__).resolve().parents[3]
_LOADERS = ("load_autotp", "load_kernel_injection", "load_transformers_tp")


def in_child(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=_REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_else() -> None:
    code = """
import sys
import typing
before = set(sys.modules)
import reshard
print(sorted(set(sys.modules) - before))
"""
    assert in_child(code) == "['reshard']\n"


def test_requests_need_no_framework() -> None:
    code = """
import sys, reshard
from pathlib import Path
reshard.Request(source="a", output=Path("b"), degrees=(2,))
reshard.CheckpointError, reshard.Report, reshard.verify, reshard.reshard, reshard.dry_run
print([name for name in ("torch", "transformers", "deepspeed", "click") if name in sys.modules])
"""
    assert in_child(code) == "[]\n"


def test_functions_stay_functions_whatever_is_imported() -> None:
    """A module of a function's name would take its place in the package."""
    code = f"""
import importlib, pkgutil, types
import reshard
for module in pkgutil.walk_packages(reshard.__path__, "reshard."):
    if not module.name.startswith("reshard.loaders."):
        importlib.import_module(module.name)
names = set(reshard.__all__) - {set(_LOADERS)!r}
print(sorted(name for name in names if isinstance(getattr(reshard, name), types.ModuleType)))
"""
    assert in_child(code) == "[]\n"


@pytest.mark.parametrize("name", sorted(set(reshard.__all__) - set(_LOADERS) - {"__version__"}))
def test_every_name_is_that_of_what_it_stands_for(name: str) -> None:
    found = getattr(reshard, name)
    assert found.__name__ == name
    assert found.__module__.startswith("reshard.")
    assert found.__doc__
    assert name in dir(reshard)


@pytest.mark.parametrize("name", _LOADERS)
def test_every_loader_has_a_module(name: str) -> None:
    """Without its runtime, which takes seconds to import."""
    (owner,) = (module for module, names in reshard._MODULES.items() if name in names)
    text = (_REPOSITORY / "reshard" / f"{owner.replace('.', '/')}.py").read_text()
    assert f"\ndef {name}(" in text
    assert name in dir(reshard)


def test_the_version_is_the_distributions() -> None:
    assert reshard.__version__ == version("offload-planner")


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'resharded'"):
        reshard.resharded  # type: ignore[attr-defined] # noqa: B018
