"""A model of two blocks on a machine of round rates: what every test here works out by hand.

Each of the eight modules has 4·64² weights (embedding and head: 256·64, as many) and 2·4·64² FLOPs a token.
"""

import msgspec

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.assignment import Assignment
from planner.cost.problem import Problem
from planner.cost.runtime_model import RuntimeModel
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.runtimes.accelerate.model import RUNTIME_MODEL as ACCELERATE
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity, Source
from planner.schema.workload import Workload

HIDDEN, VOCABULARY = 64, 256
#: Of one module, in 16 bits.
MATRIX_BYTES = 4 * HIDDEN**2 * 2
#: A block has 4·64² (attention) + 2·4·64² (MLP) weights of 2 bytes.
BLOCK_BYTES = 3 * MATRIX_BYTES
TABLE_BYTES = VOCABULARY * HIDDEN * 2
MODEL_BYTES = 2 * BLOCK_BYTES + 2 * TABLE_BYTES
MIB = 2**20
#: Two sequences; prefill leaves 10 tokens in the cache, four decode steps make 14.
WORKLOAD = Workload(batch_size=2, prompt_tokens=10, new_tokens=5, dtype="float16")
GRAPH = layered_graph(2, hidden=HIDDEN, vocabulary=VOCABULARY)


def given(value: float) -> Quantity:
    return Quantity(value=value, source=Source.MEASURED)


def round_machine(num_gpus: int = 1) -> HardwareProfile:
    """A T4's host with round rates.

    The GPU computes 1 TFLOP/s in float16 and reads 100 GB/s. Links carry 1 GB/s pinned, 0.5 GB/s pageable.
    The host works 1 ms for each tensor that is moved, 10 µs for an operation and 20 µs for a hook.
    """
    base = load("t4") if num_gpus == 1 else apply(load("t4"), num_gpus=num_gpus)
    assert base.host_to_device is not None
    assert base.gpu is not None
    link = msgspec.structs.replace(
        base.host_to_device,
        pinned_bytes_per_s=given(1e9),
        pageable_bytes_per_s=given(0.5e9),
        latency_s=given(0.0),
    )
    host = msgspec.structs.replace(
        base.host,
        tensor_move_overhead_s=given(1e-3),
        op_overhead_s=given(1e-5),
        hook_overhead_s=given(2e-5),
    )
    gpu = msgspec.structs.replace(
        base.gpu,
        memory_bytes=given(16e9),
        context_bytes=given(4e8),
        flops_per_s={"float16": given(1e12)},
        memory_bandwidth_bytes_per_s=given(100e9),
        gemm_efficiency=given(1.0),
        bandwidth_efficiency=given(1.0),
    )
    return msgspec.structs.replace(
        base, gpu=gpu, host=host, host_to_device=link, device_to_host=link, peer=link
    )


def configuration(**changes: object) -> ExecutionConfig:
    """Accelerate's, on one GPU, streaming from pinned copies in host memory."""
    plain = ExecutionConfig(
        runtime="accelerate", label="test", main="gpu:0", host_copies="pinned", streams_from=("cpu",)
    )
    return msgspec.structs.replace(plain, **changes)


def problem(
    profile: HardwareProfile | None = None, runtime_model: RuntimeModel = ACCELERATE, **changes: object
) -> Problem:
    """The model priced.

    Args:
        profile: the machine; the round one for None.
        runtime_model: of the runtime.
        **changes: what is different in the configuration.
    """
    machine = round_machine() if profile is None else profile
    return problem_of(GRAPH, machine, WORKLOAD, configuration(**changes), runtime_model)


def resident(priced: Problem) -> Assignment:
    """Everything on the main device."""
    return Assignment.uniform(priced, priced.scenario.execution.main)


def with_second_block_on(priced: Problem, place: str) -> Assignment:
    """The second block streamed from a place, everything else on the main GPU."""
    stored_on = list(resident(priced).stored_on)
    stored_on[2] = (place,) * len(stored_on[2])  # embed, layers.0, layers.1, head
    return Assignment(runs_on=("gpu:0",) * 4, stored_on=tuple(stored_on))
