"""The package's own functions, as a program calls them: planned, cut, verified, merged again."""

from pathlib import Path

import pytest

import reshard
from tests.integration.reshard.children import contents, llama, made, names, refused, run


def request(source: Path, output: Path, **more: object) -> reshard.Request:
    return reshard.Request(source=str(source), output=output, degrees=(2,), **more)  # type: ignore[arg-type]


def test_what_the_dry_run_says_is_done_and_proved(work: Path) -> None:
    source = llama(work / "model", layers=1, hidden=64)
    asked = request(source, work / "out")
    planned = reshard.dry_run(asked)
    assert names(work) == {"model"}
    told: list[int] = []
    report = reshard.reshard(asked, progress=told.append)
    assert (report.read_bytes, report.written_bytes) == (planned.read_bytes, planned.written_bytes)
    assert sum(told) == planned.read_bytes
    proved = reshard.verify(str(work / "out"), against=str(source))
    assert proved.origin_sha256 == report.sha256
    assert (proved.tp_size, proved.tensors) == (2, report.tensors)
    # The command line is the same run.
    made(source, "--tp", "2", "--output", work / "by-command")
    assert contents(work / "by-command") == contents(work / "out")


def test_a_refusal_names_fields_and_the_command_line_its_options(work: Path) -> None:
    source = llama(work / "model", layers=1, hidden=64)
    with pytest.raises(reshard.CheckpointError, match=r"^`memory_bytes` of 1 MiB is too little") as caught:
        reshard.reshard(request(source, work / "out", memory_bytes=1 << 20))
    assert "--" not in str(caught.value)
    done = run(source, "--tp", "2", "--output", work / "out", "--memory", "1MiB")
    refused(done, "--memory of 1 MiB is too little")
    assert "`" not in done.stderr


@pytest.mark.parametrize(
    "more, says, option",
    [
        ({"dtype": "int8"}, "^`dtype` int8", ("--dtype", "int8")),
        ({"format": "vllm", "roles": "roles.json"}, "^`roles`: vllm", ("--roles", "roles.json")),
    ],
)
def test_fields_are_those_of_the_request(
    work: Path, more: dict[str, str], says: str, option: tuple[str, str]
) -> None:
    source = llama(work / "model", layers=1, hidden=64)
    (work / "roles.json").write_text("{}")
    given = {key: work / value if key == "roles" else value for key, value in more.items()}
    with pytest.raises(reshard.CheckpointError, match=says):
        reshard.dry_run(request(source, work / "out", **given))
    arguments = [work / word if word == "roles.json" else word for word in option]
    form = ["--format", more["format"]] if "format" in more else []
    done = run(source, "--tp", "2", *form, *arguments, "--output", work / "out", "--dry-run")
    refused(done, option[0])
    assert "`" not in done.stderr
