"""Every shipped profile: complete, sourced, and equal to the published lists it was taken from."""

import pytest

from planner.hardware.files import defaults, known, quantities
from planner.hardware.load import load, names
from planner.schema.quantity import Source

GIB = 2**30

# us-east-1, Linux, on demand: instance → (GPU, count, vCPUs, GiB, has NVMe, USD per hour).
INSTANCES = {
    "p3.2xlarge": ("v100-16g", 1, 8, 61, False, 3.06),
    "p3.8xlarge": ("v100-16g", 4, 32, 244, False, 12.24),
    "p3.16xlarge": ("v100-16g", 8, 64, 488, False, 24.48),
    "g4dn.xlarge": ("t4", 1, 4, 16, True, 0.526),
    "g4dn.2xlarge": ("t4", 1, 8, 32, True, 0.752),
    "g4dn.4xlarge": ("t4", 1, 16, 64, True, 1.204),
    "g4dn.8xlarge": ("t4", 1, 32, 128, True, 2.176),
    "g4dn.12xlarge": ("t4", 4, 48, 192, True, 3.912),
    "g4dn.16xlarge": ("t4", 1, 64, 256, True, 4.352),
    "g4dn.metal": ("t4", 8, 96, 384, True, 7.824),
    "g5.xlarge": ("a10g", 1, 4, 16, True, 1.006),
    "g5.2xlarge": ("a10g", 1, 8, 32, True, 1.212),
    "g5.4xlarge": ("a10g", 1, 16, 64, True, 1.624),
    "g5.8xlarge": ("a10g", 1, 32, 128, True, 2.448),
    "g5.16xlarge": ("a10g", 1, 64, 256, True, 4.096),
    "g5.12xlarge": ("a10g", 4, 48, 192, True, 5.672),
    "g5.24xlarge": ("a10g", 4, 96, 384, True, 8.144),
    "g5.48xlarge": ("a10g", 8, 192, 768, True, 16.288),
    "g6.xlarge": ("l4", 1, 4, 16, True, 0.8048),
    "g6.2xlarge": ("l4", 1, 8, 32, True, 0.9776),
    "g6.4xlarge": ("l4", 1, 16, 64, True, 1.3232),
    "g6.12xlarge": ("l4", 4, 48, 192, True, 4.6016),
    "g6.48xlarge": ("l4", 8, 192, 768, True, 13.35),
    "g6e.xlarge": ("l40s", 1, 4, 32, True, 1.861),
    "g6e.2xlarge": ("l40s", 1, 8, 64, True, 2.24208),
    "g6e.4xlarge": ("l40s", 1, 16, 128, True, 3.00424),
    "g6e.8xlarge": ("l40s", 1, 32, 256, True, 4.52856),
    "g6e.12xlarge": ("l40s", 4, 48, 384, True, 10.49264),
    "p4d.24xlarge": ("a100-40g", 8, 96, 1152, True, 21.957642),
    "p4de.24xlarge": ("a100-80g", 8, 96, 1152, True, 27.44705),
    "p5.48xlarge": ("h100", 8, 192, 2048, True, 55.04),
    "p5en.48xlarge": ("h200", 8, 192, 2048, True, 63.296),
    "p6-b200.48xlarge": ("b200", 8, 192, 2048, True, 113.9328),
}

# GPU → (device memory GB/s, dense float16 TFLOP/s, runs bfloat16).
GPUS = {
    "t4": (320, 65, False),
    "v100-16g": (900, 125, False),
    "v100-32g": (900, 125, False),
    "a10g": (600, 70, True),
    "a100-40g": (1555, 312, True),
    "a100-80g": (2039, 312, True),
    "a100-80g-pcie": (1935, 312, True),
    "rtx-a6000": (768, 154.8, True),
    "titan-rtx": (672, 130, False),
    "rtx-3090": (936, 71, True),
    "rtx-4090": (1008, 165, True),
    "l4": (300, 121, True),
    "l40s": (864, 362, True),
    "h100": (3350, 989, True),
    "h100-pcie": (2000, 756, True),
    "h200": (4800, 989, True),
    "b200": (7700, 2250, True),
}

# GPU → (GB of its name, bytes a process was seen to have, where that is known exactly).
MEMORY = {
    "t4": (16, 15_642_329_088),
    "v100-16g": (16, 16_945_512_448),
    "v100-32g": (32, 34_072_428_544),
    "a10g": (24, None),
    "a100-40g": (40, None),
    "a100-80g": (80, None),
    "a100-80g-pcie": (80, None),
    "rtx-a6000": (48, None),
    "titan-rtx": (24, None),
    "rtx-3090": (24, None),
    "rtx-4090": (24, None),
    "l4": (24, None),
    "l40s": (48, None),
    "h100": (80, None),
    "h100-pcie": (80, None),
    "h200": (141, None),
    "b200": (180, None),
}


def test_the_lists_are_complete() -> None:
    assert set(known("instances")) == set(INSTANCES)
    assert set(known("gpus")) == set(GPUS) == set(MEMORY)
    assert len(names()) == len(INSTANCES) + len(GPUS) + len(known("hosts"))


@pytest.mark.parametrize("name", names())
def test_every_number_says_where_it_is_from(name: str) -> None:
    found = quantities(load(name))
    assert len(found) >= 8
    for path, quantity in found:
        assert quantity.note, f"{path} of {name} has no note"
        assert quantity.value > 0


def test_the_defaults_say_where_they_are_from() -> None:
    assert all(quantity.note for _, quantity in quantities(defaults()))


@pytest.mark.parametrize("name", sorted(INSTANCES))
def test_an_instance_is_as_listed(name: str) -> None:
    gpu, count, vcpus, gib, has_nvme, price = INSTANCES[name]
    profile = load(name)
    assert profile.gpu == load(gpu).gpu
    assert profile.num_gpus == count
    assert profile.host.num_cores == vcpus // 2
    assert profile.host.memory_bytes.value == round(gib * GIB * 0.98 - 0.5e9)
    assert (profile.disk is not None) == has_nvme
    assert profile.usd_per_hour is not None
    assert profile.usd_per_hour.value == price
    assert profile.usd_per_hour.source is Source.PUBLISHED
    assert "2026" in profile.usd_per_hour.note


@pytest.mark.parametrize("name", sorted(GPUS))
def test_a_gpu_is_as_listed(name: str) -> None:
    bandwidth, tflops, has_bfloat16 = GPUS[name]
    nominal_gb, exact = MEMORY[name]
    gpu = load(name).gpu
    assert gpu is not None
    assert gpu.memory_bandwidth_bytes_per_s.value == pytest.approx(bandwidth * 1e9)
    assert gpu.flops_per_s["float16"].value == pytest.approx(tflops * 1e12)
    assert ("bfloat16" in gpu.flops_per_s) == has_bfloat16
    assert "float32" in gpu.flops_per_s
    # Sold in GB or GiB; a process never has more than the larger of the two, nor much less than either.
    assert 0.9 * nominal_gb * GIB < gpu.memory_bytes.value < nominal_gb * GIB
    assert exact is None or gpu.memory_bytes.value == exact
    assert gpu.context_bytes.value < 0.1 * gpu.memory_bytes.value


@pytest.mark.parametrize("name", names())
def test_rates_are_possible(name: str) -> None:
    profile = load(name)
    for link in (profile.host_to_device, profile.device_to_host):
        if link is not None:
            # PCIe 5.0 x16 carries 63 GB/s, and pageable copies go through a buffer that is pinned.
            assert link.pageable_bytes_per_s.value < link.pinned_bytes_per_s.value < 63e9
    if profile.gpu is not None:
        assert profile.peer is not None
        assert profile.peer.pinned_bytes_per_s.value < profile.gpu.memory_bandwidth_bytes_per_s.value
        assert profile.gpu.gemm_efficiency.value < 1
        assert profile.gpu.bandwidth_efficiency.value < 1
    assert {"float32", "float16", "bfloat16"} <= set(profile.host.flops_per_s)


@pytest.mark.parametrize("name", names())
def test_gpus_have_a_fabric_no_faster_than_their_links(name: str) -> None:
    profile = load(name)
    assert (profile.fabric is None) == (profile.gpu is None)
    if profile.fabric is None or profile.gpu is None:
        return
    nvlink = any(word in profile.gpu.name for word in ("SXM",))
    assert profile.fabric.kind == ("nvlink" if nvlink else "pcie")
    # NVLink 5 carries 900 GB/s in each direction, PCIe 5.0 x16 carries 63.
    assert profile.fabric.bus_bytes_per_s.value < (900e9 if nvlink else 63e9)


def test_several_gpus_of_a_kind_share_its_fabric() -> None:
    assert load("8xa100-80g").fabric == load("a100-80g").fabric == load("p4de.24xlarge").fabric


def test_measured_links_are_the_measured_ones() -> None:
    expected = {
        "h100": (54.8e9, 7.9e9, 55.0e9, 13.3e9),
        "a100-80g": (25.7e9, 10.0e9, 25.8e9, 10.8e9),
        "a100-80g-pcie": (17.3e9, 3.3e9, 24.6e9, 8.5e9),
    }
    for name, rates in expected.items():
        up, down = load(name).host_to_device, load(name).device_to_host
        assert up is not None
        assert down is not None
        found = tuple(
            rate.value for link in (up, down) for rate in (link.pinned_bytes_per_s, link.pageable_bytes_per_s)
        )
        assert found == rates
