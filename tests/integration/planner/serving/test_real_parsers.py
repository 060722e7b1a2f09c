"""What is written for servers and launchers, read by those that will read it."""

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from deepspeed.inference import RaggedInferenceEngineConfig
from deepspeed.launcher import runner
from deepspeed.runtime.state_dict_factory import SDLoaderFactory
from torch.distributed import run as torchrun

from fixtures.plans import plan_with
from planner.cost.runtime_model import Emitted
from planner.graph.schema import ModuleGraph
from planner.hardware.load import load
from planner.runtimes.accelerate.model import RUNTIME_MODEL as ACCELERATE
from planner.runtimes.folder import write_folder
from planner.runtimes.zero_inference.emit import emit as emit_zero
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO
from planner.schema.plan import Plan
from planner.schema.workload import Workload
from planner.serving import djl, launch, mii, properties

WORKLOAD = Workload(batch_size=4, prompt_tokens=100, new_tokens=20, dtype="float16")
NOTHING = Emitted(files={"generate.py": b""}, needs="", readme="")

#: Prints a file of properties as Java reads it, a JSON-like line for each.
JAVA = """
import java.io.*; import java.util.*;
public class Read {
    public static void main(String[] args) throws Exception {
        Properties found = new Properties();
        try (InputStream in = new FileInputStream(args[0])) { found.load(in); }
        for (String key : new TreeSet<>(found.stringPropertyNames())) {
            System.out.println(key + "\\u0001" + found.getProperty(key));
        }
    }
}
"""


@pytest.fixture(scope="module")
def resident() -> tuple[Plan, ModuleGraph]:
    """OPT-1.3B whole on one GPU."""
    return plan_with("opt-1.3b", load("t4"), ACCELERATE, ACCELERATE.configurations(load("t4"))[0], WORKLOAD)


@pytest.fixture(scope="module")
def streamed() -> tuple[Plan, ModuleGraph]:
    """OPT-30B through ZeRO-Inference on one GPU."""
    profile = load("g5.24xlarge")
    way = next(
        one for one in ZERO.configurations(profile) if one.num_ranks == 1 and one.streams_from == ("cpu",)
    )
    return plan_with("opt-30b", profile, ZERO, way, WORKLOAD)


def cut(made: tuple[Plan, ModuleGraph], runtime: str, num_ranks: int) -> tuple[Plan, ModuleGraph]:
    """A resident plan as if it were cut over ranks."""
    return made[0].with_execution(runtime=runtime, num_ranks=num_ranks), made[1]


@pytest.mark.skipif(shutil.which("javac") is None, reason="no Java to read properties with")
@pytest.mark.parametrize("value", ["facebook/opt-1.3b", r"C:\models\x", "a=b:c # d ! e", "tab\tand more"])
def test_java_reads_what_was_meant(resident: tuple[Plan, ModuleGraph], tmp_path: Path, value: str) -> None:
    wanted = {**djl.properties_of(resident[0]), "option.model_id": value.replace("\t", " ")}
    (tmp_path / "serving.properties").write_bytes(properties.encode(wanted))
    (tmp_path / "Read.java").write_text(JAVA)
    command = ["java", str(tmp_path / "Read.java"), str(tmp_path / "serving.properties")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert dict(line.split("\x01") for line in said.splitlines()) == wanted


def test_deepspeeds_launcher_reads_hostfile_and_command(
    resident: tuple[Plan, ModuleGraph], tmp_path: Path
) -> None:
    made = launch.across_hosts(NOTHING, cut(resident, "deepspeed-tp", 16)[0])
    (tmp_path / "hostfile").write_bytes(made.files["hostfile"])
    assert dict(runner.fetch_hostfile(str(tmp_path / "hostfile"))) == {"host-1": 8, "host-2": 8}
    program, *arguments = launch.deepspeed_line("host-1").split()
    assert program == "deepspeed"
    parsed = runner.parse_args(arguments)
    assert (parsed.hostfile, parsed.master_addr, parsed.user_script) == ("hostfile", "host-1", "generate.py")
    assert parsed.user_args == ["CHECKPOINT"]


def test_torchrun_reads_its_command() -> None:
    program, *arguments = launch.torchrun_line("host-1", 2, 8).split()
    assert program == "torchrun"
    parsed = torchrun.parse_args(arguments)
    config, command, args = torchrun.config_from_args(parsed)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 8)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("c10d", "host-1:29500")
    assert args[-2:] == ["generate.py", "CHECKPOINT"]
    assert command == sys.executable


def test_deepspeed_takes_the_engine_configuration(resident: tuple[Plan, ModuleGraph]) -> None:
    config = mii.current(cut(resident, "deepspeed-tp", 2)[0])["model_config"]["inference_engine_config"]
    engine = RaggedInferenceEngineConfig(**config)
    assert engine.tensor_parallel.tp_size == 2
    assert engine.state_manager.max_context == 120
    assert engine.state_manager.max_ragged_sequence_count == 4


def test_fastgens_families_are_those_of_its_factory() -> None:
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "inference" / "v2" / "engine_factory.py").read_text()
    compared = {
        node.comparators[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr == "model_type"
        and isinstance(node.comparators[0], ast.Constant)
    }
    assert compared == mii.FASTGEN


def test_megatrons_loader_is_out_of_the_engines_reach(tmp_path: Path) -> None:
    """Why a Megatron folder is cut first: DeepSpeed makes a loader of such an index, and then indexes it."""
    torch.save({"model": {}, "mp_world_size": 1}, tmp_path / "mp_rank_00.pt")
    index = {"type": "Megatron", "checkpoints": [str(tmp_path / "mp_rank_00.pt")], "version": 0}
    loader = SDLoaderFactory.get_sd_loader_json(index, None)
    with pytest.raises(TypeError, match="not subscriptable"):
        loader["checkpoints"]
    plain = {"type": "ds_model", "checkpoints": ["pytorch_model.bin"], "version": 1.0}
    assert SDLoaderFactory.get_sd_loader_json(plain, None) == plain


def _mii() -> ModuleType:
    return pytest.importorskip(
        "mii", reason="deepspeed-mii is not installed: its CUDA packages have no place here"
    )


def test_miis_classes_have_the_fields_of_the_table() -> None:
    module = _mii()
    from mii import legacy
    from mii.config import MIIConfig, ModelConfig

    assert module.__version__.strip() == mii.table().source["version"]
    classes = {"ModelConfig": ModelConfig, "MIIConfig": MIIConfig}
    classes |= {"legacy.ModelConfig": legacy.ModelConfig, "legacy.MIIConfig": legacy.MIIConfig}
    for name, fields in mii.table().classes.items():
        found = {field.alias or key for key, field in classes[name].model_fields.items()}
        assert found == set(fields), name


def test_mii_takes_the_current_configuration(resident: tuple[Plan, ModuleGraph]) -> None:
    _mii()
    from mii.api import _parse_kwargs_to_mii_config

    config = mii.current(cut(resident, "deepspeed-tp", 2)[0])
    model_config = {**config["model_config"], "model_name_or_path": "facebook/opt-1.3b"}
    parsed = _parse_kwargs_to_mii_config(model_config=model_config, mii_config=dict(config["mii_config"]))
    assert parsed.deployment_name == "opt-1-3b"
    assert parsed.enable_restful_api
    assert parsed.model_conf.max_length == 120
    assert parsed.model_conf.inference_engine_config.tensor_parallel.tp_size == 2


@pytest.mark.parametrize("runtime", ["kernel-injection", "deepspeed-tp", "zero-inference"])
def test_legacy_mii_takes_its_configuration(
    resident: tuple[Plan, ModuleGraph], streamed: tuple[Plan, ModuleGraph], runtime: str
) -> None:
    _mii()
    from mii import legacy

    zero = runtime == "zero-inference"
    plan, emitted = (streamed[0], emit_zero(*streamed)) if zero else (cut(resident, runtime, 2)[0], NOTHING)
    config = mii.legacy(plan, emitted)
    model_config = {**config["model_config"], "model": "/models/one"}
    parsed = legacy.MIIConfig(**config["mii_config"], model_conf=model_config)
    assert parsed.model_conf.enable_zero is zero
    assert parsed.model_conf.tensor_parallel == plan.num_ranks
    assert str(parsed.model_conf.dtype) == "torch.float16"


#: Stands in for deepspeed-mii, which needs GPUs to deploy anything: notes what it is called with.
NOTING = """
import json
class DeploymentType:
    NON_PERSISTENT = "non-persistent"
calls = []
def _note(name):
    def call(*args, **named):
        print(json.dumps([name, args, named]))
        return Answering()
    return call
class Answer:
    generated_text = "said"
class Answering:
    def generate(self, prompts, **named): return [Answer() for _ in prompts]
    def query(self, request, **named): return request
    def terminate_server(self): print(json.dumps(["terminate_server", [], {}]))
serve, deploy, client, terminate, mii_query_handle = map(_note, "serve deploy client terminate query".split())
"""


def _call(folder: Path, script: str, *arguments: str) -> list[list[Any]]:
    """Run an emitted script against the stand-in; what it called."""
    (folder / "mii.py").write_text(NOTING)
    command = [sys.executable, str(folder / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]


def test_the_script_gives_mii_its_configuration(resident: tuple[Plan, ModuleGraph], tmp_path: Path) -> None:
    plan, graph = cut(resident, "deepspeed-tp", 2)
    write_folder(plan, mii.serve(NOTHING, plan, graph), tmp_path / "plan")
    ((name, _, named),) = _call(tmp_path / "plan", "mii_serve.py", "CHECKPOINT", "--prompt", "Once")
    config = json.loads((tmp_path / "plan" / "mii_config.json").read_text())
    assert name == "serve"
    assert named["mii_config"] == config["mii_config"]
    assert named["model_config"] == {**config["model_config"], "model_name_or_path": "CHECKPOINT"}
    assert _call(tmp_path / "plan", "mii_serve.py", "CHECKPOINT", "--stop")[0][:2] == ["client", ["opt-1-3b"]]


def test_the_legacy_script_keeps_zeros_model_in_its_own_process(
    streamed: tuple[Plan, ModuleGraph], tmp_path: Path
) -> None:
    write_folder(streamed[0], mii.serve(emit_zero(*streamed), *streamed), tmp_path / "plan")
    ((name, _, named), query) = _call(tmp_path / "plan", "mii_deploy.py", "CHECKPOINT", "--prompt", "Once")
    assert (name, query[0]) == ("deploy", "query")
    assert named["deployment_name"] == "opt-30b"
    assert named["mii_config"]["deployment_type"] == "non-persistent"
    assert named["model_config"]["model"] == "CHECKPOINT"
    assert named["model_config"]["enable_zero"] is True


def test_the_legacy_script_starts_a_server_otherwise(
    resident: tuple[Plan, ModuleGraph], tmp_path: Path
) -> None:
    plan, graph = cut(resident, "kernel-injection", 2)
    write_folder(plan, mii.serve(NOTHING, plan, graph), tmp_path / "plan")
    ((name, _, named),) = _call(tmp_path / "plan", "mii_deploy.py", "CHECKPOINT")
    assert name == "deploy"
    assert "deployment_type" not in named["mii_config"]
    assert named["model_config"]["replace_with_kernel_inject"] is True
    assert _call(tmp_path / "plan", "mii_deploy.py", "x", "--stop")[0][:2] == ["terminate", ["opt-1-3b"]]
