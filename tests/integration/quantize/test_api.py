"""What `import quantize` gives: cheap to import, never shadowed, the same as the command and its parts."""

import importlib
import pkgutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec
import pytest

import quantize
from fixtures import tiny
from quantize.errors import InvalidSchemeError
from quantize.formats import compressed_tensors
from quantize.quality.tensors import tensor_errors
from quantize.scheme import Groups
from quantize.select import Decision
from reshard.errors import CheckpointError
from reshard.job import open_source
from tests.integration.reshard.children import contents
from tests.integration.reshard.variants import load

ROOT = Path(__file__).resolve().parents[3]
MEMORY_BYTES = 4 << 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("api") / "llama")


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, quantize\n"
        "before = set(sys.modules)\n"
        "assert quantize.FORMAT_NAMES and quantize.__version__\n"
        "print(sorted({'numpy', 'numba', 'torch', 'msgspec', 'reshard', 'transformers'} & before))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"


def test_every_export_is_there_and_no_submodule_takes_its_place() -> None:
    exports = {name: getattr(quantize, name) for name in quantize.__all__}
    for module in pkgutil.walk_packages(quantize.__path__, "quantize."):
        # A program that reads its arguments, with torch and transformers in hand.
        if module.name != "quantize.quality.predictions":
            importlib.import_module(module.name)
    for name, value in exports.items():
        assert getattr(quantize, name) is value
    assert set(quantize.__all__) <= set(dir(quantize))
    assert (Path(quantize.__path__[0]) / "py.typed").is_file()
    assert quantize.__version__ == metadata.version("offload-planner")
    assert issubclass(quantize.InvalidRequestError, quantize.QuantizeError)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = quantize.quantise


def test_no_two_classes_have_one_name() -> None:
    seen: dict[str, str] = {}
    for module in pkgutil.walk_packages(quantize.__path__, "quantize."):
        if module.name == "quantize.quality.predictions":
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and value.__module__ == module.name:
                assert seen.setdefault(name, module.name) == module.name


def test_a_checkpoint_is_quantized_and_decoded(checkpoint: Path, tmp_path: Path) -> None:
    moved: list[int] = []
    expected: list[int] = []
    request = quantize.Request(
        checkpoint=checkpoint, output=tmp_path / "coded", group_size=16, memory_bytes=MEMORY_BYTES
    )
    done = quantize.quantize(request, progress=moved.append, started=expected.append)
    assert (done.output, done.format) == (tmp_path / "coded", "compressed-tensors")
    assert done.report is not None
    assert sum(moved) == expected[0] > 0
    quantized = {decision.name for decision in done.decisions if decision.is_quantized}
    stored = load(done.output)
    assert quantized
    for name in quantized:
        assert name not in stored
        assert f"{name}_packed" in stored
    back = quantize.dequantize(
        quantize.Request(checkpoint=done.output, output=tmp_path / "plain", memory_bytes=MEMORY_BYTES),
        "float32",
    )
    decoded, original = load(back.output), load(checkpoint)
    assert set(decoded) == set(original)
    assert max((decoded[name] - original[name]).abs().max().item() for name in quantized) < 0.05
    with pytest.raises(CheckpointError, match="is not quantized"):
        quantize.dequantize(msgspec.structs.replace(request, output=tmp_path / "none"), "float32")


def test_the_command_writes_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    shared = {"scheme": "groups", "group_size": 8, "memory_bytes": MEMORY_BYTES, "exclude": ("*.k_proj",)}
    quantize.quantize(quantize.Request(checkpoint=checkpoint, output=tmp_path / "called", **shared))
    words = ["--scheme", "groups", "--group-size", "8", "--memory", "4GiB", "--exclude", "*.k_proj"]
    ran = subprocess.run(
        [sys.executable, "-m", "cli.quantize", str(checkpoint), "--output", str(tmp_path / "run"), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert contents(tmp_path / "called") == contents(tmp_path / "run")


def test_a_deepspeed_configuration_is_written_with_groups_that_fit(checkpoint: Path, tmp_path: Path) -> None:
    request = quantize.Request(checkpoint=checkpoint, output=tmp_path / "ds.json", format="zero-inference")
    done = quantize.quantize(request)
    assert (done.format, done.report) == ("zero-inference", None)
    block = msgspec.json.decode((tmp_path / "ds.json").read_bytes())["weight_quantization"]
    # k_proj and v_proj have 32 rows.
    assert {(s["group_size"], s["group_dim"]) for s in block["post_init_quant"].values()} == {(32, 0)}
    with pytest.raises(quantize.InvalidRequestError, match=r"`output='ds_config.json'`"):
        quantize.quantize(msgspec.structs.replace(request, output=None))


def test_a_report_is_what_its_parts_measure(checkpoint: Path) -> None:
    request = quantize.Request(
        checkpoint=checkpoint, scheme="groups", group_size=16, memory_bytes=MEMORY_BYTES
    )
    found = quantize.report(request)
    source = open_source(str(checkpoint))
    assert found.tensors == tensor_errors(source, Groups(group_size=16), memory_bytes=MEMORY_BYTES)
    assert found.model is None
    assert found.totals.num_quantized == sum(e.decision.is_quantized for e in found.tensors) > 0
    packed = quantize.report(msgspec.structs.replace(request, scheme=None, format="compressed-tensors"))
    output = compressed_tensors.output(group_size=16)
    assert packed.tensors == tensor_errors(source, output, memory_bytes=MEMORY_BYTES)
    assert (packed.format, packed.tensors[0].name) == ("compressed-tensors", packed.tensors[0].decision.name)


def test_a_notebook_shows_a_table_whose_names_are_escaped(checkpoint: Path) -> None:
    found = quantize.report(quantize.Request(checkpoint=checkpoint, scheme="rows", memory_bytes=MEMORY_BYTES))
    worst = found.tensors[0]
    decision = Decision(**{**msgspec.structs.asdict(worst.decision), "name": "<b>&"})
    html = msgspec.structs.replace(
        found, tensors=(msgspec.structs.replace(worst, decision=decision), *found.tensors[1:])
    )._repr_html_()
    assert html.startswith("<table><caption>")
    assert "<td>&lt;b&gt;&amp;</td>" in html
    assert "<b>" not in html
    quantized = [error for error in found.tensors if error.decision.is_quantized]
    assert html.count("<tr>") == 1 + min(20, len(quantized))
    assert f"<td>{quantized[1].name}</td><td>{quantized[1].relative_error:.4g}</td>" in html


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"group_size": 4, "scheme": "moq"}, "`group_size` does not belong to `scheme='moq'`"),
        ({"groups": 4}, "`groups` and `mlp_extra_grouping` belong to `scheme='moq'`"),
        ({"group_dim": 0}, "`group_dim` belongs to `scheme='zero-inference'`"),
        ({"tp_size": 2}, "`tp_size` belongs to `format='safetensors'`"),
        ({"format": "gguf"}, "`format='gguf'` is not one of"),
        ({"scheme": "gptq"}, "`scheme='gptq'` is not one of"),
        ({"scheme": "moq", "format": "zero-inference"}, "is not ZeRO-Inference's"),
    ],
)
def test_a_request_that_makes_no_sense_names_its_fields(
    fields: dict[str, object], words: str, checkpoint: Path
) -> None:
    request = msgspec.structs.replace(quantize.Request(checkpoint=checkpoint), **fields)
    with pytest.raises(quantize.InvalidRequestError, match="`") as raised:
        quantize.quantize(request)
    assert words in str(raised.value)
    assert "--" not in str(raised.value)


def test_bits_that_no_formula_has_are_refused(checkpoint: Path) -> None:
    with pytest.raises(InvalidSchemeError, match="no codes of 3 bits"):
        quantize.quantize(quantize.Request(checkpoint=checkpoint, bits=3))
