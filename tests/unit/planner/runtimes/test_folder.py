"""A plan's folder: written whole, replaced whole, and nothing lost that somebody else put there."""

from pathlib import Path

import msgspec
import pytest

from fixtures.plans import plan_with
from planner.cost.runtime_model import Emitted
from planner.errors import InvalidInputError
from planner.hardware.load import load
from planner.runtimes.cpu.model import RUNTIME_MODEL
from planner.runtimes.folder import write_folder
from planner.schema.plan import Plan, read
from planner.schema.workload import Workload


@pytest.fixture(scope="module")
def plan() -> Plan:
    profile = load("t4")
    workload = Workload(batch_size=1, prompt_tokens=8, new_tokens=4, dtype="float32")
    return plan_with("opt-125m", profile, RUNTIME_MODEL, RUNTIME_MODEL.configurations(profile)[0], workload)[
        0
    ]


def emitted(*names: str) -> Emitted:
    return Emitted(files={name: name.encode() for name in names}, needs="nothing")


def test_a_plan_is_replaced_and_what_was_put_beside_it_stays(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    written = write_folder(plan, emitted("generate.py", "device_map.json"), folder)
    assert all(path.is_file() for path in written)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "notes.txt").write_text("mine")
    (folder / "__pycache__").mkdir()
    again = msgspec.structs.replace(plan, label="another way")
    write_folder(again, emitted("generate.py", "ds_config.json"), folder)
    assert read(folder).label == "another way"
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / "adapter" / "notes.txt").read_text() == "mine"
    # What the first plan alone had would mislead beside the second.
    assert not (folder / "device_map.json").exists()
    assert not (folder / "__pycache__").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_what_a_plan_needs_wins_over_a_file_of_the_same_name(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    write_folder(plan, emitted("generate.py"), folder)
    (folder / "requirements.txt").write_text("mine")
    write_folder(plan, emitted("generate.py", "requirements.txt"), folder)
    assert (folder / "requirements.txt").read_text() == "requirements.txt"


def test_a_folder_without_a_plan_is_refused_and_an_empty_one_taken(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    folder.mkdir()
    write_folder(plan, emitted("generate.py"), folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="is no plan"):
        write_folder(plan, emitted("generate.py"), other)
    assert [path.name for path in other.iterdir()] == ["precious.txt"]
