"""What is written for servers, key by key, and which plans they refuse."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fixtures.plans import plan_with
from planner.cost.runtime_model import Emitted
from planner.errors import InvalidInputError, UnknownNameError
from planner.graph.schema import ModuleGraph
from planner.hardware.load import load
from planner.runtimes.accelerate.model import RUNTIME_MODEL as ACCELERATE
from planner.runtimes.kernel_injection.environment import REQUIREMENTS
from planner.runtimes.zero_inference.emit import emit as emit_zero
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO
from planner.schema.plan import Plan
from planner.schema.workload import Workload
from planner.serving import djl, launch, mii, properties
from planner.serving.registry import serve

NOTHING = Emitted(files={"generate.py": b""}, needs="", readme="")
WORKLOAD = Workload(batch_size=4, prompt_tokens=100, new_tokens=20, dtype="float16")
Made = tuple[Plan, ModuleGraph]


@pytest.fixture(scope="module")
def resident() -> Made:
    """OPT-1.3B whole on one GPU of 16 GB."""
    return plan_with("opt-1.3b", load("t4"), ACCELERATE, ACCELERATE.configurations(load("t4"))[0], WORKLOAD)


@pytest.fixture(scope="module")
def streamed() -> Made:
    """OPT-30B through ZeRO-Inference, from host memory to two GPUs, a stream on each."""
    profile = load("g5.24xlarge")
    profile = msgspec.structs.replace(profile, num_gpus=2)
    ways = ZERO.configurations(profile)
    way = next(one for one in ways if one.num_ranks == 2 and one.streams_from == ("cpu",))
    return plan_with("opt-30b", profile, ZERO, way, WORKLOAD)


def cut(made: Made, runtime: str, num_ranks: int, **changes: Any) -> Made:
    """A resident plan as if it were cut over ranks: what servers are told depends on nothing else."""
    plan = made[0].with_execution(runtime=runtime, num_ranks=num_ranks, **changes)
    return plan, made[1]


def on_hosts_of(gpus_per_host: int, plan: Plan) -> Plan:
    """The plan on a machine that states its hosts' size."""
    hardware = msgspec.structs.replace(plan.hardware, gpus_per_host=gpus_per_host)
    return msgspec.structs.replace(plan, hardware=hardware)


# -- DJL Serving ---------------------------------------------------------------------------------------


def test_one_process_on_one_gpu(resident: Made) -> None:
    found = djl.properties_of(resident[0])
    assert found["engine"] == "Python"
    assert found["load_on_devices"] == "0"
    assert found["option.tensor_parallel_degree"] == "1"
    assert "option.mpi_mode" not in found
    assert found["batch_size"] == "4"
    assert found["option.model_id"] == "facebook/opt-1.3b"
    assert found["option.dtype"] == "fp16"
    assert (found["minWorkers"], found["maxWorkers"]) == ("1", "1")


def test_ranks_are_mpiruns_and_all_get_every_request(resident: Made) -> None:
    found = djl.properties_of(cut(resident, "deepspeed-tp", 4)[0])
    assert found["engine"] == "MPI"
    assert found["option.mpi_mode"] == "true"
    assert found["option.tensor_parallel_degree"] == "4"
    assert found["option.use_passive_workers"] == "false"
    assert "load_on_devices" not in found


def test_streams_are_ranks_too(streamed: Made) -> None:
    found = djl.properties_of(streamed[0])
    assert (found["engine"], found["option.tensor_parallel_degree"]) == ("MPI", "2")
    assert found["batch_size"] == "8"  # four sequences in each of two streams


def test_layers_on_several_gpus_are_one_process_that_sees_them_all() -> None:
    profile = load("2xt4")
    way = ACCELERATE.configurations(profile)[0]
    workload = msgspec.structs.replace(WORKLOAD, batch_size=1)
    plan, _ = plan_with("gpt-neox-20b", profile, ACCELERATE, way, workload)
    assert plan.num_ranks == 1
    found = djl.properties_of(plan)
    assert found["engine"] == "Python"
    assert found["option.tensor_parallel_degree"] == "2"


def test_a_plan_for_the_cpu_asks_for_no_gpu(resident: Made) -> None:
    found = djl.properties_of(resident[0].with_execution(main="cpu"))
    assert found["load_on_devices"] == "-1"
    assert "option.tensor_parallel_degree" not in found


def test_the_server_is_more_patient_than_the_plan_is_slow(resident: Made) -> None:
    slow = msgspec.structs.replace(resident[0].prediction, total_s=600.0, load_s=1000.0)
    found = djl.properties_of(msgspec.structs.replace(resident[0], prediction=slow))
    assert found["option.predict_timeout"] == "2400"
    assert found["option.model_loading_timeout"] == "4000"
    quick = djl.properties_of(resident[0])
    assert quick["option.predict_timeout"] == "120"
    assert quick["option.model_loading_timeout"] == "1800"


def test_files_for_djl(resident: Made) -> None:
    made = serve(NOTHING, *cut(resident, "deepspeed-tp", 4), "djl")
    names = {"generate.py", "serving.properties", "model.py", "requirements.txt", "docker.env"}
    assert set(made.files) == names
    assert b"TENSOR_PARALLEL_DEGREE=4\n" in made.files["docker.env"]
    assert b"deepspeed>=0.19.8,<0.20\n" in made.files["requirements.txt"]
    compile(made.files["model.py"], "model.py", "exec")
    assert "docker run --gpus all" in made.readme
    assert "-pytorch-gpu\n" in made.readme


def test_a_runtimes_own_requirements_stay(resident: Made) -> None:
    own = Emitted(files={"requirements.txt": b"transformers==4.43.4\n"}, needs="", readme="")
    made = serve(own, *cut(resident, "kernel-injection", 2), "djl")
    assert made.files["requirements.txt"] == b"transformers==4.43.4\n"


def test_requirements_are_the_projects_own() -> None:
    project = (Path(__file__).parents[4] / "pyproject.toml").read_text()
    for line in (*djl._COMMON, *djl._DEEPSPEED):
        assert f'"{line}"' in project


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"num_ranks": 16, "num_streams": 1}, "the files for DJL Serving are for one host"),
        ({"num_ranks": 2, "main": "cpu"}, "starts several ranks on GPUs only"),
    ],
)
def test_what_djl_refuses(resident: Made, changes: dict[str, Any], sentence: str) -> None:
    plan = resident[0].with_execution(**changes)
    with pytest.raises(InvalidInputError, match=sentence):
        djl.serve(NOTHING, plan, resident[1])


def test_an_encoder_is_not_served(resident: Made) -> None:
    model = msgspec.structs.replace(resident[0].model, auto_class="masked-lm")
    with pytest.raises(InvalidInputError, match="does not generate"):
        djl.serve(NOTHING, msgspec.structs.replace(resident[0], model=model), resident[1])


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("option.entrypoint", "model.py", r"no key 'option.entrypoint'; did you mean option.entryPoint\?"),
        ("option.tensor_parallel_degre", "2", r"did you mean option.tensor_parallel_degree\?"),
        ("zzz", "2", "no key 'zzz'$"),
        ("engine", "DeepSpeed", "engine is one of Python, MPI, not 'DeepSpeed'"),
        ("option.dtype", "float16", "option.dtype is one of fp32, fp16, bf16, int8, auto"),
        ("batch_size", "four", "batch_size takes an integer, not 'four'"),
        ("option.mpi_mode", "True", "option.mpi_mode takes true or false, not 'True'"),
        ("option.model_id", "naïve", "option.model_id takes a word"),
        ("option.model_id", " x", "option.model_id takes a word"),
    ],
)
def test_unknown_keys_and_values_are_found(key: str, value: str, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        properties.encode({key: value})


def test_every_key_names_where_it_was_read() -> None:
    table = properties.table()
    assert {key.where for key in table.keys.values()} == set(table.documents)
    assert len(table.source["commit"]) == 40


# -- DeepSpeed-MII -------------------------------------------------------------------------------------


def test_fastgen_for_a_resident_plan(resident: Made) -> None:
    made = serve(NOTHING, *cut(resident, "transformers-tp", 2), "mii")
    assert set(made.files) == {"generate.py", "mii_config.json", "mii_serve.py", "requirements-mii.txt"}
    config = json.loads(made.files["mii_config.json"])
    assert config["model_config"]["tensor_parallel"] == 2
    assert config["model_config"]["max_length"] == 120
    assert (
        config["model_config"]["inference_engine_config"]["state_manager"]["max_ragged_sequence_count"] == 4
    )
    assert b"deepspeed-mii==0.3.3\n" in made.files["requirements-mii.txt"]
    assert b"transformers" not in made.files["requirements-mii.txt"]
    compile(made.files["mii_serve.py"], "mii_serve.py", "exec")


def test_kernel_injection_has_both_forms(resident: Made) -> None:
    made = serve(NOTHING, *cut(resident, "kernel-injection", 2), "mii")
    assert {"mii_config.json", "mii_legacy.json"} <= set(made.files)
    model = json.loads(made.files["mii_legacy.json"])["model_config"]
    assert (model["enable_deepspeed"], model["enable_zero"]) == (True, False)
    assert model["replace_with_kernel_inject"] is True
    assert (model["tensor_parallel"], model["dtype"], model["max_tokens"]) == (2, "fp16", 120)
    server, *libraries = made.files["requirements-mii.txt"].decode().splitlines()
    assert (server, libraries) == ("deepspeed-mii==0.3.3", ["deepspeed==0.19.8", "transformers==4.43.4"])
    # One environment holds the server and the plain script.
    assert set(libraries) <= set(REQUIREMENTS)


def test_auto_tp_injects_no_kernels(resident: Made) -> None:
    made = serve(NOTHING, *cut(resident, "deepspeed-tp", 2), "mii")
    assert json.loads(made.files["mii_legacy.json"])["model_config"]["replace_with_kernel_inject"] is False


def test_zero_inference_is_legacy_with_its_own_configuration(streamed: Made) -> None:
    emitted = emit_zero(*streamed)
    made = serve(emitted, *streamed, "mii")
    assert "mii_config.json" not in made.files
    model = json.loads(made.files["mii_legacy.json"])["model_config"]
    assert (model["enable_deepspeed"], model["enable_zero"]) == (False, True)
    assert model["ds_config"] == json.loads(emitted.files["ds_config.json"])
    assert "deepspeed --num_gpus 2 mii_deploy.py" in made.readme


def test_neither_form_is_said_of_both(resident: Made) -> None:
    plan, graph = resident
    sentence = (
        "mii.serve: it computes in float16 or bfloat16; mii.deploy: it runs deepspeed-tp, kernel-injection"
    )
    workload = msgspec.structs.replace(plan.workload, dtype="float32")
    with pytest.raises(InvalidInputError, match=sentence):
        mii.serve(NOTHING, msgspec.structs.replace(plan, workload=workload), graph)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"num_streams": 2}, "keeps all weights on its GPUs"),
        ({"weight_bits": 8}, "does not quantize weights to 8 bits"),
    ],
)
def test_what_fastgen_does_not_run(resident: Made, changes: dict[str, Any], sentence: str) -> None:
    reason = mii.current_refusal(resident[0].with_execution(**changes), resident[1])
    assert reason is not None
    assert sentence in reason


def test_fastgen_does_not_know_every_family(resident: Made) -> None:
    reason = mii.current_refusal(resident[0], msgspec.structs.replace(resident[1], model_type="gptj"))
    assert reason is not None
    assert reason.startswith("it has no gptj, only ")


def test_legacy_zero_takes_no_bfloat16(streamed: Made) -> None:
    plan = streamed[0]
    workload = msgspec.structs.replace(plan.workload, dtype="bfloat16")
    reason = mii.legacy_refusal(msgspec.structs.replace(plan, workload=workload))
    assert reason == "with ZeRO it takes float16 or float32"


def test_a_field_that_mii_does_not_have_is_found() -> None:
    with pytest.raises(InvalidInputError, match="MII's ModelConfig has no field max_tokens"):
        mii.checked(model={"max_tokens": 3}, mii={}, prefix="")
    assert mii.unknown_keys(["max_tokens"], "legacy.ModelConfig") == []


def test_an_unknown_server(resident: Made) -> None:
    with pytest.raises(UnknownNameError, match="unknown server 'triton'; known are djl, mii"):
        serve(NOTHING, *resident, "triton")


# -- several hosts -------------------------------------------------------------------------------------


def test_one_host_needs_no_hostfile(resident: Made) -> None:
    assert launch.across_hosts(NOTHING, cut(resident, "deepspeed-tp", 8)[0]) is NOTHING


def test_two_hosts(resident: Made) -> None:
    made = launch.across_hosts(NOTHING, cut(resident, "deepspeed-tp", 16)[0])
    assert made.files["hostfile"] == b"host-1 slots=8\nhost-2 slots=8\n"
    assert launch.deepspeed_line("host-1") in made.readme
    assert launch.torchrun_line("host-1", 2, 8) in made.readme


def test_the_machine_says_how_many_gpus_a_host_has(resident: Made) -> None:
    plan = cut(resident, "deepspeed-tp", 8)[0]
    small = on_hosts_of(4, plan)
    assert launch.across_hosts(NOTHING, small).files["hostfile"] == b"host-1 slots=4\nhost-2 slots=4\n"
    assert launch.across_hosts(NOTHING, on_hosts_of(16, cut(resident, "deepspeed-tp", 16)[0])) is NOTHING
    assert "serving.properties" in djl.serve(NOTHING, plan, resident[1]).files
    with pytest.raises(InvalidInputError, match="plan for at most 4 GPUs"):
        djl.serve(NOTHING, small, resident[1])


def test_ranks_are_shared_out_evenly() -> None:
    assert (launch.num_hosts(12, 8), launch.num_hosts(24, 8), launch.num_hosts(6, 3)) == (2, 3, 2)
    with pytest.raises(InvalidInputError, match=r"9 ranks cannot be distributed evenly .* plan for 16"):
        launch.num_hosts(9, 8)
