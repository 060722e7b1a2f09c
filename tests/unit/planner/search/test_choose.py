"""Choices that a request leaves to the planner."""

import msgspec
import pytest

from fixtures.graphs import layered_graph
from planner.errors import InfeasibleError, InvalidInputError
from planner.graph.model import Model
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.models.resolve import resolve
from planner.schema.request import Request
from planner.search.alternatives import best_by_runtime
from planner.search.candidates import dtypes_for
from planner.search.choose import make_plan
from planner.tracing.store import graph_for


def _model(**changes: object) -> Model:
    graph = layered_graph(8, hidden=2048, vocabulary=32000)
    return Model(
        name="layered",
        auto_class="causal-lm",
        dtype="bfloat16",
        graph=msgspec.structs.replace(graph, **changes),
    )


def test_the_models_dtype_where_the_machine_runs_it() -> None:
    assert dtypes_for(_model(), load("a100-40g"), Request()) == ("bfloat16",)
    assert dtypes_for(_model(), load("t4"), Request()) == ("float16",)
    assert set(dtypes_for(_model(), load("t4"), Request(dtype="any"))) == {"float32", "float16"}


def test_t5_is_not_planned_in_float16() -> None:
    t5 = _model(model_type="t5")
    assert dtypes_for(t5, load("t4"), Request()) == ("float32",)
    with pytest.raises(InvalidInputError, match="keeps parts of layered in float32"):
        dtypes_for(t5, load("t4"), Request(dtype="float16"))


def test_a_sequence_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="up to 4096 tokens"):
        make_plan(_model(), load("t4"), Request(prompt_tokens=4000, new_tokens=200))


def test_cost_needs_a_price() -> None:
    with pytest.raises(InvalidInputError, match="no price"):
        make_plan(_model(), load("t4"), Request(objective="cost"))
    # A long prompt leaves room for few sequences: few batches are tried.
    request = Request(objective="cost", prompt_tokens=2048, new_tokens=4)
    plan = make_plan(_model(), load("g4dn.xlarge"), request)
    assert plan.prediction.usd_per_million_tokens is not None
    # tokens/s for an hour against the hourly price
    expected = 0.526 / (plan.prediction.tokens_per_s * 3600) * 1e6
    assert plan.prediction.usd_per_million_tokens == pytest.approx(expected)


def test_limits_bound_the_choice() -> None:
    # A long prompt leaves room for few sequences: few batches are tried.
    request = Request(objective="throughput", prompt_tokens=2048, new_tokens=4)
    free = make_plan(_model(), load("t4"), request)
    limit = free.prediction.total_s / 3
    bound = make_plan(_model(), load("t4"), msgspec.structs.replace(request, max_latency_s=limit))
    assert bound.prediction.total_s <= limit
    assert bound.workload.batch_size < free.workload.batch_size
    with pytest.raises(InfeasibleError, match="nothing finishes within"):
        make_plan(_model(), load("t4"), Request(max_latency_s=1e-6))


def test_a_batch_that_cannot_fit_names_the_deficit() -> None:
    with pytest.raises(InfeasibleError, match="lacks") as caught:
        make_plan(_model(), load("t4"), Request(batch_size=100_000))
    assert caught.value.deficit_bytes > 0
    assert caught.value.device in ("gpu:0", "cpu")


def test_what_does_not_fit_is_shown_by_what_it_lacks() -> None:
    spec = resolve("llama-3.1-405b")
    model = Model.of(spec, graph_for(spec))
    request = Request(runtimes=("transformers-tp", "zero-inference"))
    plan = make_plan(model, load("8xa100-80g"), request)
    unfit = [one for one in plan.alternatives if one.deficit_bytes]
    lacking = [one.deficit_bytes for one in unfit]
    assert lacking == sorted(lacking)
    tensor_parallel = next(one for one in best_by_runtime(plan) if one.runtime == "transformers-tp")
    assert tensor_parallel.num_ranks == 8
    # A terabyte holds the checkpoint or the swapped parameters, not both.
    from_nvme = [one for one in unfit if "NVMe" in one.label]
    assert from_nvme
    assert {one.deficit_device for one in from_nvme} == {"disk"}


def test_more_gpus_than_a_model_needs_in_turns_are_left_alone() -> None:
    request = Request(runtimes=("accelerate",), batch_size=1)
    needed = make_plan(_model(), load("4xt4"), request)
    more = make_plan(_model(), load("16xt4"), request)
    assert {one.runs_on for one in more.placements} == {one.runs_on for one in needed.placements}
    assert more.prediction.total_s == needed.prediction.total_s


def test_one_process_on_more_gpus_than_a_host_has_is_told() -> None:
    model, request = _model(), Request(runtimes=("accelerate",), batch_size=1)
    machine = apply(load("4xt4"), gpu_memory_bytes=2**30)
    plan = make_plan(model, machine, request)
    assert {one.runs_on for one in plan.placements} == {"gpu:0", "gpu:1"}
    assert not [note for note in plan.notes if "one process drives" in note]
    lone = make_plan(model, msgspec.structs.replace(machine, gpus_per_host=1), request)
    assert [note for note in lone.notes if "they must be in one machine" in note]


def test_a_simpler_runtime_that_is_as_good_as_an_estimate_can_tell_is_named() -> None:
    spec = resolve("opt-13b")
    model = Model.of(spec, graph_for(spec))
    profile = apply(load("8xa100-80g"), num_gpus=1, gpu_memory_bytes=8 * 2**30)
    ratios = []
    # The fewer tokens follow a long prompt, the more ZeRO-Inference copies while the GPU computes.
    for batch_size, new_tokens in ((16, 32), (32, 4), (64, 4), (64, 2), (128, 2)):
        request = Request(batch_size=batch_size, prompt_tokens=256, new_tokens=new_tokens)
        plan = make_plan(model, profile, request)
        best = next((one for one in best_by_runtime(plan) if one.runtime == "accelerate"), None)
        said = [note for note in plan.notes if "closer than an estimate can tell" in note]
        if plan.runtime == "accelerate" or best is None or not best.fits:
            assert not said
            continue
        ratio = (best.prefill_s + (new_tokens - 1) * best.decode_s) / plan.prediction.total_s
        ratios.append(ratio)
        assert bool(said) == (ratio < 1.05)
        if said:
            assert "`runtimes=accelerate`" in said[0]
    assert min(ratios) < 1.05 < max(ratios)


def test_a_quantized_mixture_of_experts_names_the_weights_that_stay_at_16_bits() -> None:
    spec = resolve("mixtral-8x7b")
    model = Model.of(spec, graph_for(spec))
    profile = apply(load("a100-80g"), cpu_memory_bytes=512 * 2**30)
    request = Request(runtimes=("zero-inference",), dtype="float16", batch_size=1, new_tokens=4)
    quantized = msgspec.structs.replace(request, weight_bits=4)
    (note,) = (one for one in make_plan(model, profile, quantized).notes if "16 bits" in one)
    # 32 layers of two stacked tensors: 8 experts of three matrices of 4096 by 14336.
    share = 32 * 8 * 3 * 4096 * 14336 / model.graph.num_parameters
    assert note.startswith(f"64 weights inside the blocks, {100 * share:.0f} % of the model's parameters, ")
    assert "model.layers.*.mlp.experts.gate_up_proj and model.layers.*.mlp.experts.down_proj (" in note
    assert not [one for one in make_plan(model, profile, request).notes if "16 bits" in one]


def test_without_a_gpu_the_cpu_runtime_is_chosen_before_one_that_does_the_same() -> None:
    plan = make_plan(_model(), load("cpu-16c-64g"), Request())
    assert plan.runtime == "cpu"
    assert plan.alternatives[0].runtime == "accelerate"
    assert plan.alternatives[0].reason == "as fast; the chosen one is simpler"
