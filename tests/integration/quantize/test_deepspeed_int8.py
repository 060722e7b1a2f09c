"""Int8 pre-shards hold what DeepSpeed's GroupQuantizer gives, and DeepSpeed's loader takes them.

It cannot run them: 0.19.8 refuses int8 in `init_inference`. The loader behind that is called directly.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from deepspeed.module_inject.replace_module import GroupQuantizer
from safetensors.torch import load_file, save_file

from fixtures import tiny
from quantize.convert import quantize
from quantize.errors import QuantizeError
from quantize.formats import deepspeed_int8
from quantize.restore import dequantize
from reshard.errors import CannotSplitError, CheckpointError, UnsupportedSourceError, UnsupportedTargetError
from reshard.job import Request, open_source
from reshard.run import Report, reshard
from reshard.verification import verify

ROOT = Path(__file__).resolve().parents[3]
FAMILIES = ("bloom", "gpt_neo", "gpt_neox", "gptj", "opt")
#: Whose blocks DeepSpeed can build with transformers 5. It refuses BLOOM's, and fails with GPT-NeoX's.
INJECTED = ("gpt_neo", "gptj", "opt")
#: Fixtures whose MLP the injected block cannot have.
WIDE = {"gpt_neox": {"intermediate_size": 256}, "opt": {"ffn_dim": 256, "word_embed_proj_dim": 64}}

Tensors = dict[str, Any]


def save(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A family's tiny checkpoint."""
    spec = tiny.FAMILIES[family]
    with pytest.MonkeyPatch.context() as patch:
        settings = spec.settings | WIDE.get(family, {})
        patch.setitem(tiny.FAMILIES, family, spec._replace(settings=settings))
        tiny.build(family).to(dtype).save_pretrained(folder)
    return folder


def make(source: Path, output: Path, tp_size: int = 2, **options: Any) -> Report:
    """Int8 pre-shards of a checkpoint."""
    made = deepspeed_int8.output(open_source(str(source)), tp_size=tp_size)
    return quantize(Request(source=str(source), output=output, degrees=(tp_size,)), made, **options)


def plain_shards(source: Path, output: Path, tp_size: int) -> Path:
    """Pre-shards whose weights are as the checkpoint has them."""
    reshard(Request(source=str(source), output=output, degrees=(tp_size,), format="deepspeed"))
    return output


def rank_tensors(folder: Path, rank: int) -> Tensors:
    """What a rank's file holds."""
    found: Tensors = torch.load(folder / f"tp_{rank:02d}_00.pt", weights_only=True)
    return found


def is_weight(key: str) -> bool:
    return key.endswith(("attn_qkvw", "attn_ow", "inter_w", "output_w"))


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OPT's checkpoint."""
    return save("opt", tmp_path_factory.mktemp("opt") / "checkpoint")


@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_codes_and_scales_are_the_group_quantizers_of_every_slice(
    family: str, tp_size: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = save(family, tmp_path / "checkpoint", dtype)
    make(source, tmp_path / "int8", tp_size)
    plain = plain_shards(source, tmp_path / "plain", tp_size)
    weights = 0
    for rank in range(tp_size):
        ours, theirs = rank_tensors(tmp_path / "int8", rank), rank_tensors(plain, rank)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            if not is_weight(key):
                torch.testing.assert_close(ours[key], tensor, rtol=0, atol=0)
                continue
            weights += 1
            expected = GroupQuantizer().quantize(tensor.t().contiguous())
            codes, scales = ours[key]
            assert codes.dtype == torch.int8
            assert torch.equal(codes, expected.data)
            groups = codes.shape[0]
            assert scales.shape == (groups, 1)
            assert scales.dtype == torch.float32
            # What the kernel reads of DeepSpeed's table; the rest is for halves that were not quantized.
            assert torch.equal(scales.view(-1), expected.scale.view(-1)[:groups])
    assert weights == tp_size * 4 * 2
    whole = torch.load(tmp_path / "int8" / "non-tp.pt", weights_only=True)
    assert {t.dtype for t in whole.values()} == {dtype}


def test_the_index_says_int8(opt: Path, tmp_path: Path) -> None:
    report = make(opt, tmp_path / "int8", 2)
    index = json.loads((tmp_path / "int8" / "ds_inference_config.json").read_text())
    assert index["dtype"] == "int8"
    assert index["tp_size"] == 2
    assert any("refuses dtype=torch.int8" in note for note in report.notes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load_ranks(num_ranks: int, folders: dict[str, Path], work: Path) -> dict[str, list[dict[str, Any]]]:
    """Every rank's answer, by job."""
    (work / "jobs.json").write_text(json.dumps({name: str(folder) for name, folder in folders.items()}))
    shared = {"WORLD_SIZE": str(num_ranks), "LOCAL_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    script = ROOT / "tests/integration/quantize/deepspeed_int8_rank.py"
    logs = [work / f"log-{rank}.txt" for rank in range(num_ranks)]
    children = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as out:
                child = subprocess.Popen(
                    [sys.executable, str(script), str(work / "jobs.json"), str(work)],
                    env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=out,
                    stderr=out,
                )
            children.append(child)
        for child, log in zip(children, logs, strict=True):
            assert child.wait(timeout=600) == 0, log.read_text()[-4000:]
    finally:
        for child in children:
            child.kill()
            child.wait()
    return {
        name: [torch.load(work / f"{name}-{rank}.pt", weights_only=True) for rank in range(num_ranks)]
        for name in folders
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Int8 pre-shards of every family that DeepSpeed injects here, for one and for two ranks."""
    root = tmp_path_factory.mktemp("shards")
    found = {}
    for family in INJECTED:
        source = save(family, root / family, torch.float16)
        for tp_size in (1, 2):
            found[f"{family}-{tp_size}"] = root / f"{family}-{tp_size}"
            make(source, found[f"{family}-{tp_size}"], tp_size)
    return found


@pytest.fixture(scope="module")
def answers(
    shards: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """What DeepSpeed made of every folder, with one process and with two."""
    return {n: load_ranks(n, shards, tmp_path_factory.mktemp(f"ranks-{n}")) for n in (1, 2)}


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("family", INJECTED)
def test_deepspeeds_loader_takes_them(
    family: str,
    tp_size: int,
    shards: dict[str, Path],
    answers: dict[int, dict[str, list[dict[str, Any]]]],
) -> None:
    name = f"{family}-{tp_size}"
    for rank, answer in enumerate(answers[tp_size][name]):
        assert "error" not in answer, answer
        loaded = answer["loaded"]
        for key, held in rank_tensors(shards[name], rank).items():
            if is_weight(key):
                assert torch.equal(loaded[key][0], held[0]), key
                assert torch.equal(loaded[key][1], held[1]), key
            else:
                assert torch.equal(loaded[key].to(held.dtype), held), key


@pytest.mark.parametrize("family", INJECTED)
def test_deepspeeds_loader_stops_at_another_degree(
    family: str, answers: dict[int, dict[str, list[dict[str, Any]]]]
) -> None:
    for answer in answers[2][f"{family}-1"]:
        assert "larger TP-size" in answer["message"]
    (answer,) = answers[1][f"{family}-2"]
    assert "Merging of the checkpoints are not supported" in answer["message"]


def test_deepspeed_refuses_int8_before_it_loads(
    answers: dict[int, dict[str, list[dict[str, Any]]]],
) -> None:
    """The note to users says so: once DeepSpeed takes int8, it must say something else."""
    assert "torch.int8 is not supported" in answers[1]["opt-1"][0]["refusal"]


@pytest.mark.parametrize("family", ["bloom", "gptj"])
def test_they_are_verified_and_decoded(family: str, tmp_path: Path) -> None:
    source = save(family, tmp_path / "checkpoint")
    make(source, tmp_path / "int8", 4)
    verify(str(tmp_path / "int8"))
    request = Request(
        source=str(tmp_path / "int8"), output=tmp_path / "back", degrees=(1,), format="huggingface"
    )
    dequantize(request, "float32")
    plain, back = (load_file(f / "model.safetensors") for f in (source, tmp_path / "back"))
    assert plain.keys() == back.keys()
    coded = 0
    for name, weight in plain.items():
        if torch.equal(weight, back[name]):
            continue
        coded += 1
        # Half a step of a group's scale, and a whole one for the largest value, which 128 stands for.
        step = weight.abs().amax(1, keepdim=True) / 128
        assert bool(((weight - back[name]).abs() <= step * 1.001).all()), name
    assert coded == (4 if family == "bloom" else 6) * 2


def test_shards_of_other_tools_are_still_refused(opt: Path, tmp_path: Path) -> None:
    """Without the manifest nothing says which logical rows the scales are of."""
    make(opt, tmp_path / "int8", 2)
    (tmp_path / "int8" / "reshard.json").unlink()
    with pytest.raises(UnsupportedSourceError, match="holds int8 groups of DeepSpeed"):
        open_source(str(tmp_path / "int8"))


def test_another_degree_is_refused(opt: Path, tmp_path: Path) -> None:
    made = deepspeed_int8.output(open_source(str(opt)), tp_size=4)
    with pytest.raises(UnsupportedTargetError, match=r"at tp_size=4, not at tp_size=2"):
        quantize(Request(source=str(opt), output=tmp_path / "out", degrees=(2,)), made)
    make(opt, tmp_path / "int8", 2)
    request = Request(
        source=str(tmp_path / "int8"), output=tmp_path / "out", degrees=(4,), format="deepspeed"
    )
    with pytest.raises(UnsupportedTargetError, match="quantize the plain checkpoint for that degree"):
        reshard(request)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8"]


def test_a_second_quantization_is_refused(opt: Path, tmp_path: Path) -> None:
    make(opt, tmp_path / "int8", 2)
    with pytest.raises(UnsupportedSourceError, match="quantized already"):
        make(tmp_path / "int8", tmp_path / "again", 2)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"exclude": ["*.layers.0.fc1"]}, r"layers\.0\.fc1\.weight would stay as it is"),
        ({"include": ["*embed_tokens"]}, r"embed_tokens\.weight.*the embedding is none"),
    ],
)
def test_what_the_blocks_cannot_hold_is_refused(
    opt: Path, tmp_path: Path, options: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UnsupportedTargetError, match=message):
        make(opt, tmp_path / "out", 2, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_degree_that_cuts_heads_is_refused_with_those_that_work(opt: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotSplitError, match=r"tp_size=3 would cut attention heads.*work: 1, 2, 4$"):
        make(opt, tmp_path / "out", 3)


def test_columns_that_the_degree_does_not_divide_are_refused(opt: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    tensors = load_file(opt / "model.safetensors")
    for layer in range(2):
        for name, dim in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
            key = f"model.decoder.layers.{layer}.{name}"
            tensors[key] = tensors[key].narrow(dim, 0, 254).contiguous()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((opt / "config.json").read_text()) | {"ffn_dim": 254}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CannotSplitError, match=r"fc2\.weight: its 254 columns cannot be shared out over tp"):
        make(source, tmp_path / "out", 4)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_family_that_deepspeed_does_not_inject_is_refused(tmp_path: Path) -> None:
    source = tiny.save("llama", tmp_path / "llama")
    with pytest.raises(UnsupportedTargetError, match="cannot load 'llama' from pre-shards"):
        make(source, tmp_path / "out", 2)


def test_a_weight_that_is_not_finite_leaves_nothing_behind(opt: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    tensors = load_file(opt / "model.safetensors")
    tensors["model.decoder.layers.1.fc2.weight"][3, 70] = torch.inf
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_bytes((opt / "config.json").read_bytes())
    with pytest.raises(QuantizeError, match=r"layers\.1\.fc2\.weight is NaN or infinite at \[3, 70\]"):
        make(source, tmp_path / "out", 2)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_small_buffers_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WIDE, "opt", {"hidden_size": 128, "ffn_dim": 512, "word_embed_proj_dim": 128})
    source = save("opt", tmp_path / "checkpoint")
    made = deepspeed_int8.output(open_source(str(source)), tp_size=2)
    large = Request(source=str(source), output=tmp_path / "large", degrees=(2,), jobs=4)
    quantize(large, made)
    # What this process uses depends on the tests before this one, and the budget counts it.
    monkeypatch.setattr("reshard.run.anonymous_bytes", lambda: 0)
    # Beside the slack three buffers of 64 KiB, a fourth of one of the MLP's weights.
    small_bytes = (24 << 20) + 3 * (64 << 10)
    quantize(
        msgspec.structs.replace(large, output=tmp_path / "small", jobs=1, memory_bytes=small_bytes), made
    )
    for file in (tmp_path / "large").iterdir():
        assert file.read_bytes() == (tmp_path / "small" / file.name).read_bytes(), file.name


def test_a_list_that_is_damaged_is_refused(opt: Path, tmp_path: Path) -> None:
    make(opt, tmp_path / "int8", 2)
    file = tmp_path / "int8" / "tp_00_00.pt"
    tensors = rank_tensors(tmp_path / "int8", 0)
    key = next(k for k in tensors if is_weight(k))
    tensors[key] = tensors[key][:1]
    torch.save(tensors, file)
    with pytest.raises(CheckpointError, match="tp_00_00"):
        verify(str(tmp_path / "int8"))
