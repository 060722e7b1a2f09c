"""What a folder is taken for, what a configuration may say, and which requests are refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures import tiny
from reshard.formats.registry import read_source
from reshard.storage import open_folder
from tests.integration.reshard.children import contents, made, names, refused, run

_SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every format; tests change copies."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny.save("llama", folder / "single")
    tiny.save("llama", folder / "sharded", max_shard_size="100KB")
    tiny.save("bloom", folder / "bloom")
    made(folder / "single", "--tp", "2", "--output", folder / "safetensors")
    for name in ("transformers", "vllm", "megatron"):
        made(folder / "single", "--tp", "2", "--format", name, "--output", folder / name)
    made(folder / "bloom", "--tp", "2", "--format", "deepspeed", "--output", folder / "deepspeed")
    return folder


def refuses(folder: Path, *words: str, arguments: tuple[str | Path, ...] = ("--tp", "2")) -> None:
    """Resharding `folder` ends with one sentence; everything beside it is as it was."""
    before = contents(folder.parent)
    refused(run(folder, *arguments, "--output", folder.parent / "out"), *words)
    assert contents(folder.parent) == before


@pytest.mark.parametrize(
    "kind, format_name, tp_size",
    [
        ("single", "huggingface", 1),
        ("sharded", "huggingface", 1),
        ("safetensors", "safetensors", 2),
        ("deepspeed", "deepspeed", 2),
        ("transformers", "transformers", 2),
        ("vllm", "vllm", 2),
        ("megatron", "megatron", 2),
    ],
)
@pytest.mark.parametrize("is_foreign", [False, True])
def test_formats_are_told_apart(
    made_once: Path, tmp_path: Path, kind: str, format_name: str, tp_size: int, is_foreign: bool
) -> None:
    """With our manifest and, as another tool would have written it, without."""
    folder = tmp_path / "model"
    shutil.copytree(made_once / kind, folder)
    if is_foreign and (folder / "reshard.json").exists():
        (folder / "reshard.json").unlink()
        if kind == "safetensors":
            return refuses(folder, "reshard.json")
    source = read_source(open_folder(folder))
    source.folder.close()
    assert (source.format, source.tp_size) == (format_name, tp_size)
    return None


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    refuses(tmp_path / "model", "holds nothing")


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("nothing here")
    refuses(tmp_path / "model", "notes.txt", "no checkpoint")


def test_no_folder(tmp_path: Path) -> None:
    refuses(tmp_path / "model", "is no folder")


def test_a_file_in_place_of_a_folder(tmp_path: Path, made_once: Path) -> None:
    shutil.copy(made_once / "single" / _SINGLE, tmp_path / _SINGLE)
    refuses(tmp_path / _SINGLE, "is no folder")


def test_a_scheme_that_nobody_knows(tmp_path: Path) -> None:
    refused(run("nowhere://model", "--tp", "2", "--output", tmp_path / "out"), "nowhere")
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "kinds, words",
    [
        (("single", "sharded"), ("model.safetensors", "model.safetensors.index.json")),
        (("single", "vllm"), ("huggingface", "vllm", "model.safetensors", "move one of them away")),
        (("transformers", "megatron"), ("transformers", "megatron", "move one of them away")),
    ],
)
def test_two_checkpoints_in_one_folder(
    made_once: Path, tmp_path: Path, kinds: tuple[str, ...], words: tuple[str, ...]
) -> None:
    for kind in kinds:
        shutil.copytree(made_once / kind, tmp_path / "model", dirs_exist_ok=True)
    (tmp_path / "model" / "reshard.json").unlink(missing_ok=True)
    refuses(tmp_path / "model", *words)


def test_another_checkpoint_beside_a_set(made_once: Path, tmp_path: Path) -> None:
    for kind in ("single", "safetensors"):
        shutil.copytree(made_once / kind, tmp_path / "model", dirs_exist_ok=True)
    refuses(tmp_path / "model", "reshard.json", _SINGLE, "no part of it")


def test_symbolic_links_that_lead_nowhere(made_once: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(made_once / "single" / "config.json", folder)
    (folder / _SINGLE).symlink_to(_SINGLE)
    refuses(folder, "no checkpoint")
    (folder / _SINGLE).unlink()
    (folder / _SINGLE).symlink_to("nowhere")
    refuses(folder, "no checkpoint")
    (tmp_path / "loop").symlink_to("loop")
    refused(run(tmp_path / "loop", "--tp", "2", "--output", tmp_path / "out"), "is no folder")


def test_a_folder_that_holds_itself(made_once: Path, tmp_path: Path) -> None:
    shutil.copytree(made_once / "single", tmp_path / "model")
    (tmp_path / "model" / "again").symlink_to(tmp_path / "model")
    made(tmp_path / "model", "--tp", "2", "--output", tmp_path / "out")
    assert (tmp_path / "out" / "reshard.json").is_file()
    assert "again" not in names(tmp_path / "out")


def test_links_to_files_are_followed(made_once: Path, tmp_path: Path) -> None:
    """As the hub's cache has them."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (made_once / "single").iterdir():
        (folder / file.name).symlink_to(file)
    made(folder, "--tp", "2", "--output", tmp_path / "out")
    left, right = (contents(tmp_path / "out"), contents(made_once / "safetensors"))
    # The manifests tell the folder's name.
    assert left.keys() == right.keys()
    assert left["config.json"] == right["config.json"]


def test_names_that_are_no_text(made_once: Path, tmp_path: Path) -> None:
    """Of the folder, and of files beside the checkpoint."""
    folder = tmp_path / os.fsdecode(b"mod\xff\n")
    shutil.copytree(made_once / "single", folder)
    (folder / os.fsdecode(b"\xfe.txt")).write_text("notes")
    made(folder, "--tp", "2", "--output", tmp_path / "out")
    made(tmp_path / "out", "--verify")
    assert names(tmp_path / "out") == names(made_once / "safetensors")


def test_what_looks_like_a_digest_to_come(made_once: Path, tmp_path: Path) -> None:
    """The marks in which digests are written later, in a file that is only copied."""
    folder = tmp_path / "model"
    shutil.copytree(made_once / "single", folder)
    (folder / "README.md").write_text("pending-" + "9" * 56)
    made(folder, "--tp", "2", "--output", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "pending-" + "9" * 56


@pytest.mark.parametrize("name", [_SINGLE, "config.json", "tokenizer.json", "."])
def test_what_may_not_be_read(made_once: Path, tmp_path: Path, name: str) -> None:
    prefix: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may read everything, and there is no setpriv to take that from it")
        lost = "-dac_override,-dac_read_search"
        prefix = ["setpriv", f"--bounding-set={lost}", f"--inh-caps={lost}"]
    folder = tmp_path / "model"
    shutil.copytree(made_once / "single", folder)
    (folder / name).chmod(0)
    done = run(folder, "--tp", "2", "--output", tmp_path / "out", prefix=prefix)
    (folder / name).chmod(0o700)
    refused(done, "may not be read", "Permission denied", str(folder))
    assert names(tmp_path) == {"model"}


CONFIGS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c.pop("model_type"), "model_type"),
    (lambda c: c.update(model_type=7), "model_type"),
    (lambda c: c.update(model_type="no-such-family"), "no-such-family"),
    (lambda c: c.update(model_type="../../x"), "../../x"),
    (lambda c: c.update(num_attention_heads=0), "heads"),
    (lambda c: c.update(num_attention_heads=-4), "heads"),
    (lambda c: c.update(num_attention_heads="4"), "heads"),
    (lambda c: c.update(num_attention_heads=True), "heads"),
    (lambda c: c.update(num_attention_heads=None), "heads"),
    (lambda c: c.update(num_attention_heads=10**30), "heads"),
    (lambda c: c.update(num_attention_heads=3), ""),
    (lambda c: c.update(num_key_value_heads=-2), "heads"),
    (lambda c: c.update(num_key_value_heads="2"), "heads"),
    (lambda c: c.update(num_key_value_heads=0), "kv_heads"),
    (lambda c: c.update(num_key_value_heads=3), ""),
    (lambda c: c.update(head_dim=-16), "head_dim"),
    (lambda c: c.update(head_dim=[16]), "head_dim"),
    (lambda c: c.update(head_dim=0), "head_dim"),
    (lambda c: c.update(head_dim=10**30), "head_dim"),
    (lambda c: c.update(hidden_size=0), "hidden"),
    (lambda c: c.update(hidden_size=64.0), "hidden"),
    (lambda c: c.update(hidden_size=10**30), "hidden"),
    (lambda c: c.update(num_hidden_layers=-1), "layers"),
    (lambda c: c.update(num_hidden_layers={}), "layers"),
    (lambda c: c.update(vocab_size=-5), "vocab"),
    (lambda c: c.update(vocab_size="many"), "vocab"),
    (lambda c: c.update(quantization_config=3), "quantization_config"),
]


@pytest.mark.parametrize("change, word", CONFIGS, ids=[f"{n}-{w}" for n, (_, w) in enumerate(CONFIGS)])
def test_configurations_that_make_no_sense(
    made_once: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], word: str
) -> None:
    shutil.copytree(made_once / "single", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    refuses(tmp_path / "model", word)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model_type": []}']
)
def test_a_damaged_configuration(made_once: Path, tmp_path: Path, raw: bytes) -> None:
    shutil.copytree(made_once / "single", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_bytes(raw)
    refuses(tmp_path / "model", "config.json")


def test_no_configuration(made_once: Path, tmp_path: Path) -> None:
    shutil.copytree(made_once / "single", tmp_path / "model")
    config = (tmp_path / "model" / "config.json").rename(tmp_path / "config.json")
    refuses(tmp_path / "model", "config.json", "--config")
    made(tmp_path / "model", "--tp", "2", "--config", config, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--dtype", "int8"), ("int8", "float16")),
        (("--dtype", "nonsense"), ("nonsense",)),
        (("--tp", "3"), ("3",)),
        (("--tp", "64"), ("64",)),
        (("--memory", "1MB"), ("--memory", "too little")),
    ],
)
def test_requests_that_cannot_be_met(
    made_once: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    shutil.copytree(made_once / "single", tmp_path / "model")
    refuses(tmp_path / "model", *words, arguments=("--tp", "2", *arguments))


def test_outputs_that_may_not_be_written(made_once: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(made_once / "safetensors", model)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    before = contents(tmp_path)
    for output, words in {
        "full": ("exists", "--overwrite"),
        "file": ("exists", "--overwrite"),
        "link": ("exists", "--overwrite"),
        "file/out": ("cannot be written", "another --output"),
        "file/deep/out": ("cannot be written", "another --output"),
        "link/out": ("cannot be written", "another --output"),
        "model": ("the source itself",),
        "model/out": ("inside the source",),
        "model/deep/out": ("inside the source",),
        "full/../model/out": ("inside the source",),
        ".": ("holds the source",),
        "/": ("holds the source",),
        "x" * 250: ("cannot be written",),
    }.items():
        refused(run(model, "--tp", "4", "--output", tmp_path / output), *words)
        assert contents(tmp_path) == before, output
    for output, words in {
        "full": ("holds more than this tool has written",),
        "file": ("holds more than this tool has written",),
        "link": ("holds more than this tool has written",),
        "model": ("the source itself",),
        ".": ("holds the source",),
    }.items():
        refused(run(model, "--tp", "4", "--output", tmp_path / output, "--overwrite"), *words)
        assert contents(tmp_path) == before, output


def test_folders_of_others_are_not_overwritten(made_once: Path, tmp_path: Path) -> None:
    """A set of ours somewhere in a folder does not make all of it ours."""
    output = tmp_path / "out"
    arguments = (made_once / "single", "--tp", "2,4", "--output", output)
    made(*arguments)
    expected = contents(output)
    made(*arguments, "--overwrite")
    assert contents(output) == expected
    (output / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    refused(run(*arguments, "--overwrite"), "holds more than this tool has written")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("is_link", [False, True])
def test_something_else_in_the_place_of_the_staging_folder(
    made_once: Path, tmp_path: Path, is_link: bool
) -> None:
    (tmp_path / "elsewhere" / "tree").mkdir(parents=True)
    stage = tmp_path / ".out.partial"
    if is_link:
        stage.symlink_to("elsewhere")
    else:
        stage.write_text("mine")
    before = contents(tmp_path)
    done = run(made_once / "single", "--tp", "2", "--output", tmp_path / "out")
    refused(done, "cannot be written", ".out.partial")
    assert contents(tmp_path) == before


def test_refused_requests_leave_no_folders_on_the_way(made_once: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    source = made_once / "single"
    refused(run(source, "--tp", "3", "--output", tmp_path / "a" / "b" / "out"), "3")
    assert contents(tmp_path) == before
    made(source, "--tp", "2", "--output", tmp_path / "a" / "b" / "out")
    assert names(tmp_path / "a" / "b") == {"out"}


def test_an_empty_folder_may_become_the_output(made_once: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    made(made_once / "single", "--tp", "2", "--output", tmp_path / "out")
    assert names(tmp_path) == {"out"}
    assert contents(tmp_path / "out") == contents(made_once / "safetensors")


def test_overwriting_replaces_the_whole_set(made_once: Path, tmp_path: Path) -> None:
    source, output = made_once / "single", tmp_path / "out"
    made(source, "--tp", "4", "--output", output)
    refused(run(source, "--tp", "2", "--output", output), "exists", "--overwrite")
    made(source, "--tp", "2", "--output", output, "--overwrite")
    assert names(tmp_path) == {"out"}
    assert contents(output) == contents(made_once / "safetensors")


@pytest.mark.parametrize("umask, file_mode, folder_mode", [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)])
@pytest.mark.parametrize("format_name", ["safetensors", "vllm", "megatron", "huggingface"])
def test_modes_follow_the_umask(
    made_once: Path, tmp_path: Path, umask: int, file_mode: int, folder_mode: int, format_name: str
) -> None:
    degree = "1" if format_name == "huggingface" else "2"
    arguments = ("--tp", degree, "--format", format_name, "--output", tmp_path / "deep" / "out")
    made(made_once / "safetensors", *arguments, umask=umask)
    found = {(p.is_dir(), p.stat().st_mode & 0o777) for p in tmp_path.rglob("*")}
    assert found == {(False, file_mode), (True, folder_mode)}


def test_addresses_of_fsspec(made_once: Path, tmp_path: Path) -> None:
    """The same bytes through `file://`, and sentences for what is not there."""
    made(f"file://{made_once}/single", "--tp", "2", "--output", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(made_once / "safetensors")
    made(f"file://{made_once}/sharded", "--tp", "2,4", "--output", tmp_path / "both")
    made(made_once / "sharded", "--tp", "2,4", "--output", tmp_path / "local")
    assert contents(tmp_path / "both") == contents(tmp_path / "local")
    refused(run(f"file://{tmp_path}/nowhere", "--tp", "2", "--output", tmp_path / "x"), "holds no files")
    inside = made_once / "single" / "out"
    refused(run(f"file://{made_once}/single", "--tp", "2", "--output", inside), "inside the source")
    assert names(tmp_path) == {"out", "both", "local"}
