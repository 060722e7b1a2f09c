"""What follows from the sums of one assignment, worked out by hand in the comments."""

import msgspec
import pytest

from planner.cost.memory import memory
from planner.cost.predict import predict
from planner.cost.time import time
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO
from planner.schema.quantity import Source

from .by_hand import BLOCK_BYTES, MODEL_BYTES, given, problem, resident, round_machine, with_second_block_on


def test_memory_and_time_are_the_sums() -> None:
    priced = problem()
    streamed = with_second_block_on(priced, "cpu")
    prediction = predict(priced, streamed)
    assert prediction.memory == memory(priced, streamed)
    assert prediction.time == time(priced, streamed)
    assert prediction.total_s == pytest.approx(
        prediction.time["prefill"].total + 4 * prediction.time["decode"].total
    )


def test_tokens_and_their_price() -> None:
    profile = msgspec.structs.replace(round_machine(), usd_per_hour=given(3.6))
    prediction = predict(problem(profile), resident(problem(profile)))
    # Two sequences of five tokens; a dollar buys 1000 seconds.
    assert prediction.tokens_per_s == pytest.approx(10 / prediction.total_s)
    assert prediction.usd_per_million_tokens == pytest.approx(1e-3 * prediction.total_s / 10 * 1e6)
    assert predict(problem(), resident(problem())).usd_per_million_tokens is None


def test_all_streams_tokens_count() -> None:
    priced = problem(round_machine(2), ZERO, runtime="zero-inference", num_ranks=2, num_streams=2)
    prediction = predict(priced, resident(priced))
    assert prediction.tokens_per_s == pytest.approx(2 * 10 / prediction.total_s)


def test_loading_reads_what_does_not_stay_on_disk_and_copies_what_stays_on_the_gpu() -> None:
    priced = problem(streams_from=("cpu", "disk"))
    # 0.9 GB/s from disk, 0.5 GB/s from pageable memory.
    whole = predict(priced, resident(priced))
    assert whole.load_s == pytest.approx(MODEL_BYTES / 0.9e9 + MODEL_BYTES / 0.5e9)
    on_gpu_bytes = MODEL_BYTES - BLOCK_BYTES
    from_host = predict(priced, with_second_block_on(priced, "cpu"))
    assert from_host.load_s == pytest.approx(MODEL_BYTES / 0.9e9 + on_gpu_bytes / 0.5e9)
    from_disk = predict(priced, with_second_block_on(priced, "disk"))
    assert from_disk.load_s == pytest.approx(on_gpu_bytes / 0.9e9 + on_gpu_bytes / 0.5e9)


def test_the_weakest_source_is_kept() -> None:
    priced = problem(streams_from=("cpu", "disk"))
    assert predict(priced, resident(priced)).source is Source.MEASURED
    # The disk's rate is assumed.
    assert predict(priced, with_second_block_on(priced, "disk")).source is Source.ASSUMED
