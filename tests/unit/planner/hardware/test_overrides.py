"""What the command line may replace in a profile, and what stays."""

import msgspec
import pytest

from planner.errors import InvalidInputError
from planner.hardware.load import load
from planner.hardware.overrides import apply


def test_nothing_given_changes_nothing() -> None:
    profile = load("p4d.24xlarge")
    assert apply(profile) == profile


def test_memory_replaces_what_a_process_can_use_and_nothing_else() -> None:
    before = load("t4")
    after = apply(before, gpu_memory_bytes=12 * 2**30, cpu_memory_bytes=8 * 2**30)
    assert before.gpu is not None
    assert after.gpu is not None
    assert after.gpu.memory_bytes.value == 12 * 2**30
    assert after.gpu.memory_bytes.source == "assumed"
    assert after.gpu.memory_bytes.note == "given on the command line"
    assert after.gpu.context_bytes == before.gpu.context_bytes
    assert after.host.memory_bytes.value == 8 * 2**30
    assert after.host_to_device == before.host_to_device
    assert after.disk == before.disk


def test_no_gpus_leave_the_host() -> None:
    before = load("p3.16xlarge")
    after = apply(before, num_gpus=0)
    assert after.num_gpus == 0
    links = (after.host_to_device, after.device_to_host, after.peer, after.fabric)
    assert (after.gpu, *links) == (None,) * 5
    assert after.host == before.host
    assert after.usd_per_hour == before.usd_per_hour


def test_fewer_gpus_cost_the_same_and_more_have_no_price() -> None:
    machine = load("p3.8xlarge")
    assert apply(machine, num_gpus=2).usd_per_hour == machine.usd_per_hour
    assert apply(machine, num_gpus=8).usd_per_hour is None
    assert apply(machine, num_gpus=8).host == machine.host


def test_a_second_gpu_needs_a_link_to_the_first() -> None:
    assert apply(load("t4"), num_gpus=2).peer is not None
    lonely = msgspec.structs.replace(load("t4"), peer=None)
    assert apply(lonely, num_gpus=1).num_gpus == 1
    with pytest.raises(InvalidInputError, match=r"add a \[peer\] table"):
        apply(lonely, num_gpus=2)


def test_an_nvme_is_added_or_replaced() -> None:
    added = apply(load("p3.2xlarge"), nvme=(2 * 10**12, 3e9)).disk
    assert added is not None
    assert (added.capacity_bytes.value, added.read_bytes_per_s.value) == (2e12, 3e9)
    before = load("g4dn.xlarge").disk
    replaced = apply(load("g4dn.xlarge"), nvme=(10**12, 5e9)).disk
    assert before is not None
    assert replaced is not None
    assert replaced.read_bytes_per_s.value == 5e9
    assert replaced.latency_s == before.latency_s


def test_a_faster_link_speeds_pinned_copies_only() -> None:
    before, after = load("h100").host_to_device, apply(load("h100"), link_bytes_per_s=60e9).host_to_device
    assert before is not None
    assert after is not None
    assert after.pinned_bytes_per_s.value == 60e9
    assert after.pageable_bytes_per_s == before.pageable_bytes_per_s


def test_a_slow_link_bounds_pageable_copies_both_ways() -> None:
    # Pageable before: 7.9 GB/s up and 13.3 GB/s down.
    after = apply(load("h100"), link_bytes_per_s=10e9)
    assert after.host_to_device is not None
    assert after.device_to_host is not None
    assert after.host_to_device.pageable_bytes_per_s.value == 7.9e9
    assert after.device_to_host.pageable_bytes_per_s.value == 10e9
    assert after.device_to_host.pageable_bytes_per_s.source == "assumed"


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"num_gpus": -1}, "number of GPUs must not be negative"),
        ({"gpu_memory_bytes": 0}, "GPU memory must be above zero"),
        ({"gpu_memory_bytes": -(2**30)}, "GPU memory must be above zero"),
        ({"gpu_memory_bytes": 2**20}, "CUDA context"),
        ({"cpu_memory_bytes": 0}, "CPU memory must be above zero"),
        ({"nvme": (0, 3e9)}, "NVMe's capacity"),
        ({"nvme": (10**12, -1.0)}, "NVMe's rate"),
        ({"nvme": (10**12, float("nan"))}, "NVMe's rate"),
        ({"link_bytes_per_s": 0.0}, "link's rate"),
        ({"link_bytes_per_s": float("inf")}, "link's rate"),
    ],
)
def test_senseless_numbers_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        apply(load("t4"), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", [{"num_gpus": 1}, {"gpu_memory_bytes": 2**34}, {"link_bytes_per_s": 1e9}]
)
def test_gpu_options_need_a_gpu(arguments: dict[str, object]) -> None:
    cpu_only = load("cpu-16c-64g")
    with pytest.raises(InvalidInputError, match="cpu-16c-64g has no GPU"):
        apply(cpu_only, **arguments)  # type: ignore[arg-type]
    assert apply(cpu_only, num_gpus=0) == cpu_only
