"""The Python interface: values in, values out, the same as the command line's."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import planner
from cli.main import run
from planner.errors import InfeasibleError, InvalidInputError

REQUEST = planner.Request(batch_size=4, new_tokens=4, runtimes=("accelerate", "cpu"))


@pytest.fixture(scope="module")
def plan() -> planner.Plan:
    return planner.plan("gpt-j-6b", "t4", REQUEST)


def test_importing_it_imports_nothing_else() -> None:
    code = (
        "import sys, planner; loaded = {name.split('.')[0] for name in sys.modules}; "
        "print(sorted(loaded & {'torch', 'numpy', 'msgspec', 'networkx', 'transformers', 'click'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_is_there_and_stays_what_it_is() -> None:
    for name in planner.__all__:
        assert getattr(planner, name) is getattr(planner, name)
        assert name in dir(planner)
    # A module of the same name would take the function's place as soon as it is imported.
    names = {path.stem for path in Path(planner.__file__).parent.iterdir()}
    assert not names & set(planner.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = planner.nothing_like_it


def test_a_plan_is_what_the_command_prints(plan: planner.Plan, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--batch 4 --new-tokens 4 --runtime accelerate --runtime cpu --json"
    assert run(["plan", "--model", "gpt-j-6b", "--hardware", "t4", *options.split()]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(msgspec.json.encode(plan))


def test_a_plan_repeats_itself(plan: planner.Plan) -> None:
    assert plan.request == REQUEST
    assert plan.fits
    assert planner.plan(planner.load_model(plan.model.source or ""), plan.hardware, plan.request) == plan


def test_an_emitted_plan_is_read_again_and_explained(plan: planner.Plan, tmp_path: Path) -> None:
    files = planner.emit(plan, tmp_path / "plan")
    assert {file.name for file in files} >= {"plan.json", "generate.py", "device_map.json"}
    again = planner.read_plan(tmp_path / "plan")
    assert again == plan
    assert planner.explain(again).headline.startswith("gpt-j-6b in float16 on t4")


def test_a_map_that_does_not_fit_is_predicted_all_the_same() -> None:
    everything = {"": 0}
    predicted = planner.predict("opt-13b", "t4", device_map=everything, batch_size=2)
    assert not predicted.fits
    assert predicted.workload.batch_size == 2
    with pytest.raises(InvalidInputError, match="either `device_map` or `ds_config`"):
        planner.predict("opt-13b", "t4")
    with pytest.raises(InvalidInputError, match="either `device_map` or `ds_config`"):
        planner.predict("opt-13b", "t4", device_map=everything, ds_config={})


def test_machines_are_compared_by_name_or_by_profile() -> None:
    machines = planner.compare("gpt-j-6b", ["g4dn.xlarge", planner.load_hardware("g5.xlarge")], REQUEST)
    assert {machine.hardware for machine in machines} == {"g4dn.xlarge", "g5.xlarge"}
    assert machines[0].total_s <= machines[1].total_s


def test_numbers_of_a_profile_are_replaced() -> None:
    machine = planner.load_hardware("t4", gpu_memory_bytes=8 * 2**30)
    assert machine.gpu is not None
    assert machine.gpu.memory_bytes.value == 8 * 2**30
    with pytest.raises(InfeasibleError) as refused:
        planner.plan("opt-13b", machine, planner.Request(runtimes=("kernel-injection",)))
    assert refused.value.deficit_bytes > 0


def test_errors_name_fields_and_not_options() -> None:
    with pytest.raises(InvalidInputError, match="shorten `prompt_tokens` or `new_tokens`"):
        planner.plan("opt-13b", "t4", planner.Request(prompt_tokens=4096))


def test_values_show_themselves_in_a_notebook(plan: planner.Plan) -> None:
    named = planner.load_model("gpt-j-6b")
    machines = planner.compare(named, ["t4"], REQUEST)
    for value, words in (
        (plan, "Best configuration of each runtime"),
        (planner.explain(plan), "stored on"),
        (machines, "tokens/s"),
        (named, "GPTJForCausalLM"),
        (plan.hardware, "host memory"),
    ):
        html = value._repr_html_()
        assert html is not None
        assert "<table>" in html
        assert words in html


def test_names_are_escaped_in_a_notebook(plan: planner.Plan) -> None:
    model = msgspec.structs.replace(plan.model, name="<script>alert(1)</script>")
    html = msgspec.structs.replace(plan, model=model)._repr_html_()
    assert html is not None
    assert "<script>" not in html
