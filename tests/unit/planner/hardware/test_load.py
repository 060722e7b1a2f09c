"""Names, counts and files: what loads, what is refused and how it is said."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from planner.errors import InvalidInputError, ProfileError, UnknownNameError
from planner.hardware.assemble import scaled
from planner.hardware.load import load, names
from planner.hardware.overrides import apply
from planner.schema.hardware import HardwareProfile

MACHINE = """
description = "a test machine"
num_gpus = 2
gpu = "t4"

[host]
cpu = "xeon-cascade-lake"
num_cores = 8
installed_memory_bytes = { value = 64e9, source = "measured", note = "free" }
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("t4", "t4"),
        (" T4 ", "t4"),
        ("Tesla T4", "t4"),
        ("V100-16G", "v100-16g"),
        ("V100-SXM2-16GB", "v100-16g"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("A6000", "rtx-a6000"),
        ("a100-sxm4-80gb", "a100-80g"),
        ("A100-PCIe-80GB", "a100-80g-pcie"),
        ("h100-sxm", "h100"),
        ("P4D.24xlarge", "p4d.24xlarge"),
        ("1xT4", "t4"),
        ("2xV100-16G", "2xv100-16g"),
        ("8xa100-80g", "8xa100-80g"),
        ("4×t4", "4xt4"),
    ],
)
def test_names_that_people_type(text: str, expected: str) -> None:
    assert load(text).name == expected


@pytest.mark.parametrize(
    "text,listed",
    [
        ("v100", ["v100-16g", "v100-32g"]),
        ("a100", ["a100-40g", "a100-80g", "a100-80g-pcie"]),
        ("g4dn", ["g4dn.xlarge", "g4dn.metal"]),
        ("8xv100", ["v100-16g", "v100-32g"]),
        ("l40", ["l40s"]),
        ("g4dn.xlrge", ["g4dn.xlarge"]),
        ("mi300x", ["planner hardware list"]),
        ("", ["planner hardware list"]),
    ],
)
def test_a_name_of_no_or_several_machines_lists_the_nearest(text: str, listed: list[str]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load(text)
    assert all(name in str(caught.value) for name in listed)


def test_a_count_is_of_one_to_many_gpus_and_not_of_machines() -> None:
    with pytest.raises(InvalidInputError, match="asks for 0 GPUs"):
        load("0xt4")
    with pytest.raises(InvalidInputError, match="asks for 5000 GPUs"):
        load("5000xt4")
    with pytest.raises(InvalidInputError, match="whole machine"):
        load("4xp3.2xlarge")


def test_a_count_scales_the_host_and_says_that_it_is_assumed() -> None:
    one, four = load("a100-80g"), load("4xA100-80G")
    assert four.num_gpus == 4
    assert four.gpu == one.gpu
    assert four.host_to_device == one.host_to_device
    assert four.disk == one.disk
    assert four.host.num_cores == 4 * one.host.num_cores
    assert four.host.memory_bytes.value == 4 * one.host.memory_bytes.value
    assert four.host.op_overhead_s == one.host.op_overhead_s
    for quantity in (four.host.memory_bytes, *four.host.flops_per_s.values()):
        assert quantity.source == "assumed"
        assert "4 times" in quantity.note


def test_a_file_says_how_many_gpus_a_host_has(tmp_path: Path) -> None:
    stated = load(written(tmp_path, MACHINE.replace("num_gpus = 2", "num_gpus = 2\ngpus_per_host = 4")))
    assert (stated.gpus_per_host, stated.host_gpus) == (4, 4)
    assert scaled(stated, 16, "16xmine").host_gpus == 4
    assert apply(stated, num_gpus=16).host_gpus == 4
    # A file that says nothing means hosts of up to eight, whatever the count.
    assert [load(name).host_gpus for name in ("t4", "16xt4", "p4d.24xlarge", "cpu-16c-64g")] == [8, 8, 8, 8]
    with pytest.raises(ProfileError, match="gpus_per_host must be at least 1, not 0"):
        load(written(tmp_path, MACHINE.replace("num_gpus = 2", "num_gpus = 2\ngpus_per_host = 0")))


def test_a_profile_on_disk_has_the_size_of_its_hosts_where_it_is_stated() -> None:
    silent = load("16xt4")
    on_disk = msgspec.json.encode(silent)
    assert b"gpus_per_host" not in on_disk
    assert msgspec.json.decode(on_disk, type=HardwareProfile) == silent
    stated = msgspec.structs.replace(silent, gpus_per_host=4)
    assert msgspec.json.decode(msgspec.json.encode(stated), type=HardwareProfile) == stated


def test_a_file_uses_the_gpu_it_names(tmp_path: Path) -> None:
    profile, t4 = load(written(tmp_path, MACHINE)), load("t4")
    assert (profile.name, profile.num_gpus, profile.gpu) == ("mine", 2, t4.gpu)
    assert (profile.host_to_device, profile.peer) == (t4.host_to_device, t4.peer)
    # 64e9 installed, less 2 % and 0.5e9 for the system.
    assert profile.host.memory_bytes.value == 64e9 * 0.98 - 0.5e9
    # The reserve is assumed, and a sum is as good as its weakest part.
    assert profile.host.memory_bytes.source == "assumed"
    assert profile.disk is None


def test_a_files_own_numbers_go_before_the_shared_ones(tmp_path: Path) -> None:
    text = (
        MACHINE
        + 'op_overhead_s = { value = 9e-6, source = "measured" }\n'
        + 'memory_bandwidth_bytes_per_s = { value = 33e9, source = "measured" }\n'
        + "[host_to_device]\n"
        + 'pinned_bytes_per_s = { value = 12e9, source = "measured" }\n'
        + 'pageable_bytes_per_s = { value = 6e9, source = "measured" }\n'
    )
    profile = load(written(tmp_path, text))
    assert profile.host.op_overhead_s.value == 9e-6
    assert profile.host.memory_bandwidth_bytes_per_s.value == 33e9
    assert profile.host.hook_overhead_s == load("t4").host.hook_overhead_s
    assert profile.host_to_device is not None
    assert profile.host_to_device.pinned_bytes_per_s.value == 12e9
    assert profile.device_to_host == load("t4").device_to_host


def test_memory_that_a_file_states_is_taken_as_it_is(tmp_path: Path) -> None:
    stated = 'memory_bytes = { value = 50e9, source = "measured", note = "MemAvailable" }\n'
    memory = load(written(tmp_path, MACHINE + stated)).host.memory_bytes
    assert (memory.value, memory.source, memory.note) == (50e9, "measured", "MemAvailable")


def test_more_memory_than_is_installed_is_refused(tmp_path: Path) -> None:
    stated = 'memory_bytes = { value = 65e9, source = "assumed" }\n'
    with pytest.raises(ProfileError, match=r"mine\.toml: key host: memory_bytes is 65000000000, more than"):
        load(written(tmp_path, MACHINE + stated))


def test_many_cores_share_a_sockets_channels(tmp_path: Path) -> None:
    rates = {
        cores: load(
            written(tmp_path, MACHINE.replace("num_cores = 8", f"num_cores = {cores}"))
        ).host.memory_bandwidth_bytes_per_s.value
        for cores in (8, 24, 25, 48)
    }
    # 8 GB/s a core, 100 GB/s a socket of 24 cores.
    assert rates == {8: 64e9, 24: 100e9, 25: 200e9, 48: 200e9}


@pytest.mark.parametrize(
    "old,new,words",
    [
        ("num_gpus = 2", "num_gpus = ", ["not valid TOML"]),
        ("num_gpus = 2", "num_gpus = -1", ["num_gpus must not be negative"]),
        ("num_gpus = 2", 'num_gpus = "two"', ["key num_gpus", "Expected `int`"]),
        ("num_gpus = 2\n", "", ["missing required field `num_gpus`"]),
        ("num_gpus = 2", "num_gpus = 2\nnum_gpu = 2", ["unknown field `num_gpu`"]),
        ('gpu = "t4"\n', "", ["has 2 GPUs but no gpu"]),
        ('gpu = "t4"', 'gpu = "t5"', ["key gpu", "'t5'", "t4"]),
        ('"xeon-cascade-lake"', '"i7"', ["key host.cpu", "'i7'", "xeon-cascade-lake"]),
        ('cpu = "xeon-cascade-lake"\n', "", ["key host", "name a cpu"]),
        ("num_cores = 8", "num_cores = 0", ["key host", "num_cores must be at least 1"]),
        ("64e9", "-64e9", ["key host.installed_memory_bytes", "not negative"]),
        ("64e9", "nan", ["key host.installed_memory_bytes", "finite"]),
        ("64e9", "1e6", ["host.installed_memory_bytes", "system itself needs"]),
        ('"measured"', '"guessed"', ["key host.installed_memory_bytes.source", "guessed"]),
        ("note =", "noted =", ["key host.installed_memory_bytes", "unknown field `noted`"]),
    ],
)
def test_a_bad_file_is_a_sentence_with_file_and_key(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    assert old in MACHINE
    with pytest.raises(ProfileError) as caught:
        load(written(tmp_path, MACHINE.replace(old, new)))
    assert all(word in str(caught.value) for word in ["mine.toml", *words])


def test_a_rate_of_zero_is_refused(tmp_path: Path) -> None:
    disk = """
[disk]
capacity_bytes = { value = 1e12, source = "assumed" }
read_bytes_per_s = { value = 0, source = "assumed" }
"""
    with pytest.raises(ProfileError, match=r"mine.toml.*key disk.read_bytes_per_s: must be above zero"):
        load(written(tmp_path, MACHINE + disk))


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.toml: No such file"):
        load(str(tmp_path / "none.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match=r"bytes\.toml is not valid TOML"):
        load(str(tmp_path / "bytes.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ProfileError, match=r"folder\.toml: Is a directory"):
        load(str(tmp_path / "folder.toml"))


def test_no_name_shadows_another() -> None:
    assert len(set(names())) == len(names())
    for name in names():
        assert load(name.upper()).name == name


def test_loading_imports_no_framework() -> None:
    program = (
        "import sys\nfrom planner.hardware.load import load\nload('8xa100-80g')\n"
        "print(sorted({'torch', 'transformers', 'accelerate', 'click', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
