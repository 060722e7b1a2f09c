"""A traced graph against the forward itself: unseen sizes, real memory, published numbers."""

import copy
import weakref
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fixtures.families import FAMILIES
from planner.graph.schema import ModuleGraph, Node
from planner.models.build import build as build_spec
from planner.models.resolve import resolve
from planner.tracing.cost_tracer import CostTracer, PhaseSample
from planner.tracing.meta_model import build, cache_of, decode_inputs, prefill_inputs
from planner.tracing.trace import trace

META = torch.device("meta")
CPU = torch.device("cpu")
TRACED = ["gptj", "opt", "bloom", "llama", "mixtral", "t5", "gemma2", "gpt_neo", "gpt2"]


@cache
def family(name: str, attention: str | None = None) -> tuple[Any, type]:
    """Configuration and class of a tiny model, with windows that the tests' lengths stay below."""
    import transformers

    found = FAMILIES[name]
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[found.model_type]
    settings = dict(found.config_arguments)
    for window in ("sliding_window", "window_size"):
        if window in settings:
            settings[window] = 1024
    config = config_class(**settings)
    if attention is not None:
        config._attn_implementation = attention
    return config, getattr(transformers, found.auto_class)._model_mapping[config_class]


@cache
def graph_of(name: str, attention: str | None = None) -> ModuleGraph:
    return trace(*family(name, attention), generates=True)


def phases(model: Any, batch: int, prompt: int) -> list[tuple[str, int, PhaseSample]]:
    """Both phases at one size, every layer run: (phase, context, sample)."""
    tracer = CostTracer(model, {})
    inputs = prefill_inputs(model, batch, prompt, META)
    output, prefill = tracer.phase(inputs, True)
    held = cache_of(output)
    assert held is not None
    encoded = output.encoder_last_hidden_state if model.config.is_encoder_decoder else None
    del output
    _, decode = tracer.phase(decode_inputs(model, inputs, held, encoded), True)
    return [("prefill", 0, prefill), ("decode", 2 if encoded is not None else prompt + 1, decode)]


def direct(sample: PhaseSample, name: str) -> tuple[int, float, float, float]:
    """num_ops, flops, moved bytes and peak of one module."""
    own = [i for i, event in enumerate(sample.names) if event == name]
    return (
        len(own),
        float(sample.flops[own].sum()),
        float(sample.moved[own].sum()),
        float(sample.live[own].max(initial=0)),
    )


def predicted(node: Node, itemsize: str, phase: str, **lengths: int) -> tuple[int, float, float, float]:
    cost = getattr(node.costs[itemsize], phase)
    peak = max((form(**lengths) for form in cost.peak_bytes), default=0.0)
    return cost.num_ops, cost.flops(**lengths), cost.moved_bytes(**lengths), peak


@pytest.mark.parametrize("itemsize", ["2", "4"])
@pytest.mark.parametrize("name", TRACED)
def test_an_unseen_size_is_predicted_exactly(name: str, itemsize: str) -> None:
    graph = graph_of(name)
    model = build(*family(name), {"2": torch.bfloat16, "4": torch.float32}[itemsize])
    batch, prompt = 7, 37
    for phase, context, sample in phases(model, batch, prompt):
        assert {n for n in sample.names if n} <= {node.name for node in graph.nodes}
        for node in graph.nodes:
            if node.costs:
                lengths = {"batch": batch, "prompt": prompt, "context": context}
                assert predicted(node, itemsize, phase, **lengths) == direct(sample, node.name), node.name


@pytest.mark.parametrize("name", TRACED)
def test_a_batch_of_one_is_never_underestimated(name: str) -> None:
    graph = graph_of(name)
    model = build(*family(name), torch.bfloat16)
    for phase, context, sample in phases(model, 1, 37):
        lengths = {"batch": 1, "prompt": 37, "context": context}
        highest = max(predicted(n, "2", phase, **lengths)[3] for n in graph.nodes if n.costs)
        assert sample.live.max() <= highest <= 1.05 * sample.live.max()


def kv_bytes(graph: ModuleGraph, batch: int, prompt: int, context: int, itemsize: int) -> float:
    total = 0.0
    for node in graph.nodes:
        if node.kv is not None:
            seen = min(context, node.kv.window or context)
            each = node.kv.per_sequence + node.kv.per_token * seen + node.kv.per_prompt_token * prompt
            total += batch * each * (1 if node.kv.fixed_dtype else itemsize / 2)
    return total


class AliveMemory(TorchDispatchMode):
    """Bytes of all storages alive on real tensors, weights left out; counted without the tracer's code."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self._weights = {t.untyped_storage().data_ptr() for t in weights}
        self._alive: dict[int, Any] = {}
        self.now = 0
        self.peak = 0

    def _enter(self, tensor: torch.Tensor) -> None:
        memory = tensor.untyped_storage()
        address, size = memory.data_ptr(), memory.nbytes()
        if not size or address in self._weights or address in self._alive:
            return
        self.now += size
        self._alive[address] = weakref.ref(memory, lambda _: self._leave(address, size))

    def _leave(self, address: int, size: int) -> None:
        del self._alive[address]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._enter(tensor)
        if not func.is_view:
            self.peak = max(self.peak, self.now)
        return out


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "name", ["llama", "opt", "gpt2", "t5", "mixtral", "gptj", "bloom", "gpt_neo", "gemma2"]
)
def test_a_real_forward_needs_the_memory_that_was_predicted(name: str, attention: str) -> None:
    config, model_class = family(name)
    if attention == "sdpa" and not model_class._supports_sdpa:  # type: ignore[attr-defined]
        attention = "eager"
    graph = graph_of(name, attention)
    batch, prompt = 3, 100
    config = copy.deepcopy(config)
    config._attn_implementation = attention
    model = model_class._from_config(config, dtype=torch.float32).eval()  # type: ignore[attr-defined]
    is_encoder_decoder = bool(config.is_encoder_decoder)
    measured = AliveMemory([*model.parameters(), *model.buffers()])
    with torch.no_grad(), measured:
        inputs = prefill_inputs(model, batch, prompt, CPU)
        output = model(**inputs)
    first = measured.peak
    held = cache_of(output)
    assert held is not None
    encoded = output.encoder_last_hidden_state if is_encoder_decoder else None
    del output
    measured.peak = 0
    with torch.no_grad(), measured:
        following = decode_inputs(model, inputs, held, encoded)
        if not is_encoder_decoder:
            del inputs
        model(**following)

    def peak(phase: str, context: int) -> float:
        # Without the root's last event, which is `generate()`'s copy of the logits.
        lengths = {"batch": batch, "prompt": prompt, "context": context}
        return max(predicted(n, "4", phase, **lengths)[3] for n in graph.nodes if n.costs and n.name)

    context = 2 if is_encoder_decoder else prompt + 1
    cached = kv_bytes(graph, batch, prompt, context - 1, 4)
    if is_encoder_decoder:  # the worst moment is in the encoder, before there is a cache
        assert peak("prefill", 0) == pytest.approx(first, rel=0.01)
    else:
        assert peak("prefill", 0) + cached == pytest.approx(first, rel=0.01)
    # A step's worst moment is in the first layer, when the others' caches lack the new token.
    after = peak("decode", context) + kv_bytes(graph, batch, prompt, context, 4)
    assert measured.peak <= after <= 1.03 * measured.peak


@pytest.mark.parametrize(
    "name, per_token",
    [
        ("bloom-176b", 70 * 57_344),  # 2 · 14,336 · 2 bytes in each of 70 blocks
        ("llama-3-8b", 131_072),  # 2 · 8 heads · 128 · 2 bytes · 32 layers
        ("falcon-7b", 32 * 2 * 64 * 2),  # one head of 64
        ("gemma-2-9b", 42 * 2 * 8 * 256 * 2),
    ],
)
def test_published_shapes_give_known_cache_and_parameters(name: str, per_token: int) -> None:
    spec = resolve(name)
    graph = trace(*build_spec(spec), generates=True, config_sha256=spec.config_sha256)
    assert spec.published is not None
    assert graph.num_parameters == spec.published.num_parameters
    assert sum(n.kv.per_token for n in graph.nodes if n.kv) == per_token
    assert all(not n.kv.fixed_dtype for n in graph.nodes if n.kv)
    windows = {n.kv.window for n in graph.nodes if n.kv}
    assert windows == ({None, 4096} if name == "gemma-2-9b" else {None})


def test_blooms_block_has_the_known_flops() -> None:
    spec = resolve("bloom-7b1")
    graph = trace(*build_spec(spec), generates=True)
    width = 4096
    block = [n.costs["2"].prefill.flops for n in graph.nodes if n.block == "transformer.h.3" and n.costs]
    assert sum(form.bp for form in block) == 24 * width**2
    assert sum(form.bp2 for form in block) == 4 * width


def test_cross_attention_is_cached_per_prompt_token() -> None:
    cached = {n.name.rpartition(".")[2]: n.kv for n in graph_of("t5").nodes if n.kv}
    assert cached["EncDecAttention"].per_prompt_token == 2 * 64 * 2
    assert cached["EncDecAttention"].per_token == 0
    assert cached["SelfAttention"].per_token == 2 * 64 * 2
    assert cached["SelfAttention"].per_prompt_token == 0


def test_a_state_space_model_keeps_states_and_no_tokens() -> None:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        hidden_size=64,
        num_heads=8,
        head_dim=16,
        state_size=16,
        n_groups=1,
        num_hidden_layers=2,
        vocab_size=64,
    )
    graph = trace(config, Mamba2ForCausalLM, generates=True)
    cached = [n.kv for n in graph.nodes if n.kv]
    assert len(cached) == 2
    assert all(kv.per_sequence > 0 and kv.per_token == 0 for kv in cached)


def test_an_encoder_has_no_decode_and_no_cache() -> None:
    config, model_class = family("bert")
    graph = trace(config, model_class, generates=False)
    assert graph.generates is False
    assert all(n.kv is None for n in graph.nodes)
    assert all(c.decode.num_ops == 0 for n in graph.nodes for c in n.costs.values())
    assert sum(c.prefill.num_ops for n in graph.nodes for c in n.costs.values()) > 0


def test_beyond_a_window_the_layers_left_overs_count() -> None:
    import transformers

    settings = FAMILIES["mistral"].config_arguments | {"sliding_window": 16, "num_hidden_layers": 4}
    config = transformers.MistralConfig(**settings)
    graph = trace(config, transformers.MistralForCausalLM, generates=True)
    assert {n.kv.window for n in graph.nodes if n.kv} == {16}
    model = build(config, transformers.MistralForCausalLM, torch.bfloat16)
    for batch, prompt in ((2, 90), (3, 100)):
        _, _, sample = phases(model, batch, prompt)[0]
        lengths = {"batch": batch, "prompt": prompt, "context": 0}
        highest = max(predicted(n, "2", "prefill", **lengths)[3] for n in graph.nodes if n.costs)
        assert sample.live.max() <= highest <= 1.05 * sample.live.max()
