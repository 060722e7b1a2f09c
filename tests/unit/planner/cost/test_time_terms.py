"""What a processor takes for products of few rows and for attention, worked out by hand in the comments."""

import msgspec
import pytest

from fixtures.graphs import layered_graph, linear
from planner.cost.time_terms import cpu_engine, kernel_s
from planner.graph.schema import Node
from planner.hardware.assemble import scaled
from planner.hardware.load import load
from planner.schema.hardware import Host
from planner.schema.quantity import Quantity, Source
from planner.schema.workload import Workload

INPUTS, OUTPUTS = 1000, 2000
PRODUCT = linear("up", OUTPUTS, INPUTS, order=0, block=None)
NUM_WEIGHTS = INPUTS * OUTPUTS


def given(value: float) -> Quantity:
    return Quantity(value=value, source=Source.MEASURED)


def host(**more: object) -> Host:
    """10 GB/s and 100 GFLOP/s: in float32 0.4 ns to read a weight, and 0.02 ns for it in each row."""
    plain = msgspec.structs.replace(
        load("t4").host, memory_bandwidth_bytes_per_s=given(10e9), flops_per_s={"float32": given(100e9)}
    )
    return msgspec.structs.replace(plain, **more)


#: 8 rows: 16 FLOPs a weight at 20 GFLOP/s are 0.8 ns. 32 rows: 64 at 40 GFLOP/s are 1.6 ns.
FEW = {"float32": {32: given(40e9), 8: given(20e9)}}


def decode_s(node: Node, host: Host, batch: int, *, context: int = 100) -> float:
    workload = Workload(batch_size=batch, prompt_tokens=10, new_tokens=5, dtype="float32")
    weight_bytes = sum(tensor.num_elements for tensor in node.tensors) * 4
    engine = cpu_engine(host, "float32")
    return kernel_s(node, engine, "decode", workload, context=context, weight_bytes=weight_bytes)


@pytest.mark.parametrize(
    "batch, ns_a_weight",
    [
        (8, 0.8),
        # Halfway from 8 to 32.
        (20, 1.2),
        (32, 1.6),
        # Past the last count of rows arithmetic bounds it: 100 · 0.02 ns.
        (100, 2.0),
        # There it does not yet: what was measured at 32 rows is the least that more of them take.
        (40, 1.6),
    ],
)
def test_a_product_of_few_rows_takes_what_was_measured(batch: int, ns_a_weight: float) -> None:
    found = decode_s(PRODUCT, host(few_rows_flops_per_s=FEW), batch)
    assert found == pytest.approx(ns_a_weight * 1e-9 * NUM_WEIGHTS)


def test_one_row_reads_its_weights_with_and_without_them() -> None:
    # 4·3000 bytes of activations beside 4 · 2·10⁶ of weights.
    expected = (12_000 + 4 * NUM_WEIGHTS) / 10e9
    assert decode_s(PRODUCT, host(), 1) == pytest.approx(expected)
    assert decode_s(PRODUCT, host(few_rows_flops_per_s=FEW), 1) == pytest.approx(expected)


def test_without_rates_of_few_rows_memory_and_arithmetic_bound_a_product() -> None:
    # 8 rows: reading is 0.4 ns a weight, arithmetic 0.16.
    assert decode_s(PRODUCT, host(), 8) == pytest.approx((8 * 12_000 + 4 * NUM_WEIGHTS) / 10e9)
    assert decode_s(PRODUCT, host(), 100) == pytest.approx(2.0e-9 * NUM_WEIGHTS)


def test_more_rows_never_take_less() -> None:
    # A disturbed measurement: 8 rows in 1.6 ns, 32 in 0.64.
    odd = host(few_rows_flops_per_s={"float32": {8: given(10e9), 32: given(100e9)}})
    times = [decode_s(PRODUCT, odd, batch) for batch in (1, 4, 8, 16, 32, 64, 128)]
    assert times == sorted(times)
    assert times[4] == pytest.approx(1.6e-9 * NUM_WEIGHTS)


def test_attention_reads_its_cache_at_its_own_rate() -> None:
    attention = next(node for node in layered_graph(1).nodes if node.kv is not None)
    slow = host(attention_bytes_per_s={"float32": given(1e9)})
    # 4·64 bytes a token in 16 bits, twice that in 32: 512 · 100 tokens · 8 sequences, at 1 GB/s for 10.
    cache = 512 * 100 * 8
    difference = decode_s(attention, slow, 8) - decode_s(attention, host(), 8)
    assert difference == pytest.approx(cache / 1e9 - cache / 10e9)


def test_rates_grow_with_the_hosts_share() -> None:
    single = msgspec.structs.replace(
        load("t4"), host=host(few_rows_flops_per_s=FEW, attention_bytes_per_s={"float32": given(1e9)})
    )
    found = scaled(single, 4, "4xt4").host
    assert found.few_rows_flops_per_s["float32"][8].value == 80e9
    assert found.attention_bytes_per_s["float32"].value == 4e9
