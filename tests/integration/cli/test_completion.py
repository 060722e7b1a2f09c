"""Shell completion in real processes: the scripts for the shells, and what bash offers for a word."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.docs.blocks import blocks_of

_PROGRAMS = {"planner": "cli.main", "reshard": "cli.reshard", "quantize": "cli.quantize"}

#: Sources the program's script as a user does, and calls the function that bash calls for the last word.
_ASK_BASH = """
set -u
eval "$(_{variable}_COMPLETE=bash_source {program})"
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ echo "completed as $2"; }}
_{program}_completion {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.fixture
def path(tmp_path: Path, repository: Path) -> dict[str, str]:
    """The environment of a shell that finds the three programs of this checkout."""
    for program, module in _PROGRAMS.items():
        script = tmp_path / program
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(repository)!r})\n"
            f"from {module} import main\nmain()\n"
        )
        script.chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}


def _offers(line: str, environment: dict[str, str], *, empty_word: bool = False) -> list[str]:
    program = line.split()[0]
    words = line + (" ''" if empty_word else "")
    script = _ASK_BASH.format(program=program, variable=program.upper(), words=words)
    ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.split("\n")[:-1]


@needs_bash
@pytest.mark.parametrize(
    "line, offered",
    [
        ("planner pl", ["plan"]),
        ("planner hardware sh", ["show"]),
        ("planner plan --hardware v1", ["v100-16g", "v100-32g"]),
        ("planner plan --hardware 8xa100-4", ["8xa100-40g"]),
        ("planner compare --hardware t4,g6.4x", ["t4,g6.4xlarge"]),
        ("planner hardware show titan", ["titan-rtx"]),
        ("planner predict --model gpt-j", ["gpt-j-6b"]),
        ("planner models show opt-3", ["opt-350m", "opt-30b"]),
        ("planner plan --objective th", ["throughput"]),
        ("planner plan --runtime zero", ["zero-inference"]),
        ("planner plan --dtype a", ["any"]),
        ("planner predict --device-map au", ["auto"]),
        ("reshard model --format v", ["vllm"]),
        ("reshard model --dtype b", ["bfloat16"]),
        ("reshard --ver", ["--verify", "--version"]),
        ("quantize model --scheme symmetric-", ["symmetric-search"]),
        ("quantize --dequantize float1", ["float16"]),
    ],
)
def test_bash_offers_names(line: str, offered: list[str], path: dict[str, str]) -> None:
    assert _offers(line, path) == offered


@needs_bash
def test_bash_offers_every_command(path: dict[str, str]) -> None:
    from cli.registry import COMMANDS

    assert _offers("planner", path, empty_word=True) == sorted(COMMANDS)


@needs_bash
@pytest.mark.parametrize(
    "line, kind",
    [
        ("planner plan --hardware ./my", "default"),
        ("planner plan --model ./my", "dirnames"),
        ("reshard ./my", "dirnames"),
    ],
)
def test_what_is_no_name_is_completed_as_a_path(line: str, kind: str, path: dict[str, str]) -> None:
    assert f"completed as {kind}" in _offers(line, path)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", _PROGRAMS)
def test_every_shell_gets_a_script(program: str, shell: str, path: dict[str, str]) -> None:
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    environment = path | {f"_{program.upper()}_COMPLETE": f"{shell}_source"}
    ran = subprocess.run([program], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"_{program}_completion" in ran.stdout
    assert f"_{program.upper()}_COMPLETE={shell}_complete" in ran.stdout


def test_an_unknown_shell_is_a_usage_error(path: dict[str, str]) -> None:
    environment = path | {"_PLANNER_COMPLETE": "nosuchshell_source"}
    ran = subprocess.run(["planner"], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "bash_source" in ran.stderr


@pytest.mark.parametrize("words", ["planner plan --hardware v1", "planner plan --model op", "planner "])
def test_completing_imports_no_framework(words: str, repository: Path) -> None:
    program = (
        "import os, sys, cli.main\n"
        f"os.environ.update(_PLANNER_COMPLETE='bash_complete', COMP_WORDS={words!r}, "
        f"COMP_CWORD='{len(words.split(' ')) - 1}')\n"
        "status = cli.main.run([])\n"
        "print([m for m in ('torch', 'transformers', 'accelerate') if m in sys.modules], file=sys.stderr)\n"
        "sys.exit(status)"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "[]\n")
    assert "plain," in ran.stdout


@needs_bash
def test_the_lines_for_bashrc_in_the_documentation_work(path: dict[str, str], repository: Path) -> None:
    page = (repository / "docs" / "command-line.md").read_text(encoding="utf-8")
    (lines,) = ("\n".join(block.lines) for block in blocks_of(page) if block.language == "bash")
    script = f"set -eu\n{lines}\ncomplete -p {' '.join(_PROGRAMS)}"
    ran = subprocess.run(["bash", "-c", script], env=path, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [line.split()[-1] for line in ran.stdout.splitlines()] == [*_PROGRAMS]
