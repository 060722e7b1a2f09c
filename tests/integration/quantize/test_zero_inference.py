"""ZeRO-Inference with the emitted block computes what the plain model computes whose weights were coded here.

The plain model's weights are encoded and decoded by `quantize.groups.zero_inference`; DeepSpeed encodes the
original ones itself. Equal logits, bit for bit, say that both agree about which weights and how.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fixtures import tiny
from fixtures.families import FAMILIES
from quantize.errors import GroupSizeError
from quantize.formats.zero_inference import ds_config, weight_quantization, write_ds_config
from quantize.groups import zero_inference
from quantize.scheme import ZeroInference
from quantize.select import decide, quantized
from reshard.errors import OutputExistsError, UnsupportedTargetError
from reshard.job import open_source

ROOT = Path(__file__).resolve().parents[3]
TRAINED = ROOT / "fixtures/trained"


class Case(NamedTuple):
    """A model, a scheme, and how DeepSpeed is brought to them.

    Attributes:
        family: of the tiny fixtures; None: the trained one.
        scheme: what is emitted.
        order: quantized before ZeRO-3 has the model (`first`), the same and cut up before the engine is made
            (`zero-init`), or built in parts (`under-zero`).
        include: patterns of what else is quantized.
        exclude: patterns of what is not.
    """

    family: str | None
    scheme: ZeroInference
    order: str = "first"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


BY_OUTPUT = ZeroInference(bits=8, group_size=32, dim=0)
#: Decoded by plain torch: a size that is a multiple of 8 along the input takes a CUDA kernel.
BY_INPUT = ZeroInference(bits=8, group_size=4, dim=1)
FOUR_BITS = ZeroInference(bits=4, group_size=32, dim=0)

CASES = {
    "trained": Case(None, BY_OUTPUT),
    "trained-zero-init": Case(None, BY_OUTPUT, "zero-init"),
    "trained-under-zero": Case(None, BY_OUTPUT, "under-zero"),
    "trained-input": Case(None, BY_INPUT, "zero-init"),
    "trained-four-bits": Case(None, FOUR_BITS, "zero-init"),
    "trained-four-bits-input": Case(None, ZeroInference(bits=4, group_size=4, dim=1)),
    "trained-some": Case(None, BY_OUTPUT, exclude=("transformer.h.0.*", "*.fc_out")),
    "trained-head": Case(None, ZeroInference(bits=8, group_size=8, dim=0), include=("lm_head",)),
    "bloom": Case("bloom", BY_OUTPUT, "zero-init"),
    "gpt_neox": Case("gpt_neox", BY_OUTPUT),
    "gpt_neox-head": Case("gpt_neox", ZeroInference(bits=8, group_size=8, dim=0), include=("*embed_out*",)),
    "llama": Case("llama", BY_OUTPUT),
    "opt": Case("opt", BY_OUTPUT),
    "t5": Case("t5", BY_OUTPUT, exclude=("*.wo",)),
}
#: What DeepSpeed itself refuses, or cannot do here.
FAILS = {"kernel": Case(None, ZeroInference(bits=8, group_size=64, dim=1))}

#: T5's `wo`, which transformers keeps in float32, DeepSpeed casts to float16 where `fp16` is enabled: the
#: logits, below 1, then differ by roundings of float16.
TOLERANCES = {"t5": 2e-3}


def save(case: Case, folder: Path) -> Path:
    """The case's checkpoint in float16."""
    if case.family is None:
        return TRAINED
    tiny.build(case.family).half().save_pretrained(folder)
    return folder


def auto_class(case: Case) -> str:
    return FAMILIES[case.family].auto_class if case.family else "AutoModelForCausalLM"


def emit(case: Case, checkpoint: Path, path: Path) -> set[str]:
    """Write the case's configuration; the names of the weights that it is to reach."""
    source = open_source(str(checkpoint))
    decisions = decide(source, case.include, case.exclude)
    write_ds_config(path, source, decisions, case.scheme)
    return set(quantized(decisions))


def decoded(case: Case, checkpoint: Path, names: set[str], folder: Path) -> Path:
    """The checkpoint with weights that were encoded and decoded."""
    folder.mkdir()
    tensors = load_file(checkpoint / "model.safetensors")
    for name in names:
        scheme, weight = case.scheme, tensors[name].numpy()
        found = zero_inference.encode(weight, group_size=scheme.group_size, dim=scheme.dim, bits=scheme.bits)
        assert found.minimum is not None
        tensors[name] = torch.from_numpy(
            zero_inference.decode(found.codes, found.scales, found.minimum, dim=scheme.dim, bits=scheme.bits)
        )
        assert not np.array_equal(tensors[name].numpy(), weight)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in ("config.json", "generation_config.json"):
        (folder / file).write_bytes((checkpoint / file).read_bytes())
    return folder


def prompt(case: Case) -> dict[str, list[list[int]]]:
    rows = [[(7 * i + 11 * row + 5) % 250 for i in range(12)] for row in range(2)]
    if case.family is None:
        rows = [list(b"The planner "), list(b"A checkpoint")]
    found = {"input_ids": rows, "attention_mask": [[1] * 12] * 2}
    return found | {"decoder_input_ids": [[0, 9, 31, 4], [0, 77, 8, 201]]} if case.family == "t5" else found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(num_ranks: int, names: list[str], work: Path) -> dict[str, list[dict[str, Any]]]:
    """Every rank's answers by case; under `chosen`, what was to be quantized."""
    jobs, chosen = [], {}
    for name in names:
        case = (CASES | FAILS)[name]
        checkpoint = save(case, work / name)
        chosen[name] = emit(case, checkpoint, work / f"{name}.json")
        jobs.append(
            {
                "name": name,
                "checkpoint": str(checkpoint),
                "decoded": str(decoded(case, checkpoint, chosen[name], work / f"{name}-decoded")),
                "config": str(work / f"{name}.json"),
                "order": case.order,
                "auto_class": auto_class(case),
                "prompt": prompt(case),
                "new_tokens": 24,
            }
        )
    (work / "jobs.json").write_text(json.dumps(jobs))
    run_processes(num_ranks, work)
    return {
        name: [
            json.loads((work / f"{name}-{rank}.json").read_text()) | {"chosen": sorted(chosen[name])}
            for rank in range(num_ranks)
        ]
        for name in names
    }


def run_processes(num_ranks: int, work: Path) -> None:
    script = ROOT / "tests/integration/quantize/zero_inference_rank.py"
    shared = {"WORLD_SIZE": str(num_ranks), "LOCAL_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    logs = [(work / f"log-{rank}.txt").open("w+") for rank in range(num_ranks)]
    children = [
        subprocess.Popen(
            [sys.executable, str(script), str(work / "jobs.json"), str(work)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=logs[rank],
            stderr=subprocess.STDOUT,
        )
        for rank in range(num_ranks)
    ]
    try:
        statuses = [child.wait(timeout=600) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
        texts = [Path(log.name).read_text()[-3000:] for log in logs]
        for log in logs:
            log.close()
    assert statuses == [0] * num_ranks, "\n".join(texts)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """One process's answers for every case."""
    return run_ranks(1, [*CASES, *FAILS], tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Two processes' answers, each of which holds half of every weight."""
    names = ["trained", "trained-zero-init", "trained-under-zero", "trained-four-bits"]
    return run_ranks(2, names, tmp_path_factory.mktemp("together"))


def check(answer: dict[str, Any], name: str, num_ranks: int) -> None:
    if name == "trained-under-zero" and not answer.get("has_fp16", True):
        # Without `fp16` models are built in float32 there, which DeepSpeed does not quantize.
        assert answer["message"] == "Model weight is expected in half."
        return
    assert "error" not in answer, answer
    tolerance = TOLERANCES.get(name, 0.0)
    logits, plain = (torch.tensor(answer[kind]["logits"]) for kind in ("quantized", "plain"))
    assert (logits - plain).abs().max().item() <= tolerance
    assert answer["quantized"]["tokens"] == answer["plain"]["tokens"]
    assert len(answer["kept"]) == len(answer["chosen"])
    for module, (elements, held, present) in answer["kept"].items():
        # Cut up among the ranks, and not there while another module runs.
        assert held == -(-elements // num_ranks), module
        assert present == 0, module


@pytest.mark.parametrize("name", CASES)
def test_it_computes_as_the_plain_model_with_coded_weights(
    name: str, alone: dict[str, list[dict[str, Any]]]
) -> None:
    check(alone[name][0], name, 1)


@pytest.mark.parametrize("name", ["trained", "trained-zero-init", "trained-under-zero", "trained-four-bits"])
@pytest.mark.parametrize("rank", range(2))
def test_two_processes_compute_the_same(
    name: str, rank: int, together: dict[str, list[dict[str, Any]]]
) -> None:
    check(together[name][rank], name, 2)


def test_groups_of_8_along_the_input_need_a_gpu(alone: dict[str, list[dict[str, Any]]]) -> None:
    """The docstring says so: once DeepSpeed decodes them without its kernel, it may say something else."""
    assert "not been implemented on CPU" in alone["kernel"][0]["message"]


def test_the_configuration_is_deepspeeds() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    source = open_source(str(TRAINED))
    config = ds_config(source, decide(source), BY_OUTPUT)
    parsed = DeepSpeedConfig(config)
    block = config["weight_quantization"]
    assert parsed.weight_quantization_config.post_init_quant == block["post_init_quant"]
    assert parsed.zero_optimization_stage == 3
    assert parsed.zero_config.offload_param.device == "cpu"
    assert parsed.float16_config.enabled


#: Families with none, and families that are refused, for which other tests say why.
NO_LINEARS = ("gpt2", "falcon-grouped", "falcon-multi-head", "falcon-multi-query")
LEFT_OUT = {"mixtral": "*.experts.*", "qwen3_moe": "*.experts.*", "t5": "*.wo"}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NO_LINEARS])
def test_keys_reach_the_chosen_linears_and_no_others(family: str, tmp_path: Path) -> None:
    checkpoint = tiny.save(family, tmp_path / family)
    source = open_source(str(checkpoint))
    decisions = decide(source, exclude=[LEFT_OUT[family]] if family in LEFT_OUT else ())
    keys = weight_quantization(source, decisions, ZeroInference(group_size=16))["post_init_quant"]
    spec = FAMILIES[family]
    model = getattr(transformers, spec.auto_class).from_pretrained(checkpoint, dtype=torch.float16)
    # DeepSpeed replaces these two classes, and none that is derived from them.
    modules = {n: m for n, m in model.named_modules() if type(m) in (torch.nn.Linear, torch.nn.Embedding)}
    found = {name: [key for key in keys if key in name] for name in modules}
    assert all(len(keys) <= 1 for keys in found.values())
    reached = [modules[name].weight for name, keys in found.items() if keys]
    assert len(reached) == len(quantized(decisions)) > 0
    assert {weight.dtype for weight in reached} == {torch.float16}


def test_a_name_that_is_part_of_another_takes_whole_names(tmp_path: Path) -> None:
    source = open_source(str(tiny.save("bert", tmp_path / "bert")))
    keys = weight_quantization(source, decide(source), ZeroInference(group_size=16))["post_init_quant"]
    assert ".attention.output.dense" in keys
    assert ".output.dense" not in keys
    assert "bert.encoder.layer.1.output.dense" in keys


def test_what_deepspeed_would_pass_over_is_refused(tmp_path: Path) -> None:
    scheme = ZeroInference(group_size=16)
    mixtral = open_source(str(tiny.save("mixtral", tmp_path / "mixtral")))
    with pytest.raises(UnsupportedTargetError, match=r"stacks experts.*exclude='\*\.experts\.\*'"):
        weight_quantization(mixtral, decide(mixtral), scheme)
    falcon = open_source(str(tiny.save("falcon-grouped", tmp_path / "falcon")))
    with pytest.raises(UnsupportedTargetError, match="every Linear of falcon"):
        weight_quantization(falcon, decide(falcon), scheme)
    t5 = open_source(str(tiny.save("t5", tmp_path / "t5")))
    with pytest.raises(UnsupportedTargetError, match=r"keeps it in float32.*exclude='\*\.wo'"):
        weight_quantization(t5, decide(t5), scheme)
    gpt2 = open_source(str(tiny.save("gpt2", tmp_path / "gpt2")))
    with pytest.raises(UnsupportedTargetError, match="no Linear in its blocks is chosen"):
        weight_quantization(gpt2, decide(gpt2), scheme)
    trained = open_source(str(TRAINED))
    with pytest.raises(UnsupportedTargetError, match=r"wte\.weight.*leave embeddings out"):
        weight_quantization(trained, decide(trained, include=["*wte"]), scheme)


def test_groups_that_do_not_tile_are_refused_with_the_tensor() -> None:
    source = open_source(str(TRAINED))
    with pytest.raises(GroupSizeError, match=r"transformer\.h\.\d\..*groups of 96 weights do not divide"):
        weight_quantization(source, decide(source), ZeroInference(group_size=96))


def test_a_file_that_stands_there_stays(tmp_path: Path) -> None:
    source = open_source(str(TRAINED))
    decisions = decide(source)
    path = tmp_path / "new" / "ds_config.json"
    write_ds_config(path, source, decisions, BY_OUTPUT)
    with pytest.raises(OutputExistsError, match="`overwrite`"):
        write_ds_config(path, source, decisions, FOUR_BITS)
    assert json.loads(path.read_text()) == ds_config(source, decisions, BY_OUTPUT)
    write_ds_config(path, source, decisions, FOUR_BITS, overwrite=True)
    assert json.loads(path.read_text()) == ds_config(source, decisions, FOUR_BITS)
    assert [p.name for p in path.parent.iterdir()] == ["ds_config.json"]
