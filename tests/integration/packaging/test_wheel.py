"""The wheel holds the packages and their data, and nothing else under a generic name."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy so that no build folder is left in the repository."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (repository / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((repository / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (built_wheel,) = out.glob("*.whl")
    return built_wheel


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    """Files of the wheel."""
    return zipfile.ZipFile(wheel).namelist()


def test_top_level_names(names: list[str], repository: Path) -> None:
    expected = {name for name in ("planner", "reshard", "quantize", "cli") if (repository / name).is_dir()}
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == expected


def test_every_module_and_data_file_is_in(names: list[str], repository: Path) -> None:
    expected = {
        str(path.relative_to(repository))
        for package in ("planner", "reshard", "quantize", "cli")
        for path in (repository / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - set(names) == set()
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_console_script_and_licence(names: list[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


#: What a user's own program does, and what a type checker knows of it.
PROGRAM = """
import planner
import quantize
import reshard

reveal_type(planner.plan("gpt-j-6b", "t4"))
reveal_type(reshard.dry_run)
reveal_type(quantize.Request)
"""


def test_an_installed_wheel_is_typed(wheel: Path, names: list[str], tmp_path: Path) -> None:
    assert {f"{package}/py.typed" for package in ("planner", "reshard", "quantize", "cli")} <= set(names)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    # The libraries that it depends on are those of this environment.
    (site / "libraries.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    argv = ["-m", "mypy", "--python-executable", str(environment / "bin" / "python"), "--no-incremental"]
    argv += ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports", "program.py"]
    done = subprocess.run([sys.executable, *argv], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for revealed in ("planner.schema.plan.Plan", "-> reshard.preview.DryRun", "-> quantize.request.Request"):
        assert revealed in done.stdout
