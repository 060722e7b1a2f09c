"""Traces a configuration and a model class to a ModuleGraph, without weights."""

import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import torch
from transformers import PreTrainedConfig

from planner.errors import TraceError
from planner.graph.schema import (
    SCHEMA_VERSION,
    ItemsizeCost,
    ModuleGraph,
    ModuleRole,
    Node,
    PhaseCost,
    Tensor,
)
from planner.models.spec import AutoClass
from planner.models.spec import config_sha256 as hash_config
from planner.tracing.edges import flow
from planner.tracing.fits import DECODE_TERMS, DECODE_TERMS_WITH_ENCODER, PREFILL_TERMS
from planner.tracing.forwards import is_under
from planner.tracing.kv import kv_costs
from planner.tracing.layers import Layer, equal_layers
from planner.tracing.meta_model import build
from planner.tracing.node_costs import phase_costs, with_peaks_of
from planner.tracing.partition.derive import derive
from planner.tracing.partition.modules import module_roles
from planner.tracing.placement import TracedPlacement, trace_placement
from planner.tracing.sampling import (
    Samples,
    max_positions,
    prompt_step,
    sample,
    sizes_past_windows,
    sizes_to_sample,
)

_logger: Final = logging.getLogger(__name__)
# bfloat16 represents both 2-byte dtypes, because some shape functions do not accept float16.
_DTYPES: Final = {"2": torch.bfloat16, "4": torch.float32}
_NOTHING: Final = PhaseCost(num_ops=0)


def trace(
    config: PreTrainedConfig,
    model_class: type,
    *,
    generates: bool,
    config_sha256: str | None = None,
) -> ModuleGraph:
    """Traces a transformers model.

    Args:
        config: its configuration; not changed.
        model_class: a transformers class with a language-model head.
        generates: whether `generate()` applies; False for an encoder such as BERT.
        config_sha256: hash of the configuration to record; computed from `config` when None.

    Raises:
        TraceError: the model cannot be built, or its forward cannot be traced without weights.
    """
    placement = trace_placement(config, model_class)
    models = {key: build(config, model_class, dtype) for key, dtype in _DTYPES.items()}
    layers = equal_layers(models["2"])
    samples = {key: _samples(model, layers, generates) for key, model in models.items()}
    model = models["2"]
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    text_config = model.config.get_text_config(decoder=True)
    head = model.get_output_embeddings()
    return ModuleGraph(
        schema_version=SCHEMA_VERSION,
        model_class=model_class.__name__,
        model_type=str(model.config.model_type),
        config_sha256=config_sha256 or _hash(config, generates),
        versions={name: version(name) for name in ("torch", "transformers")},
        nodes=_nodes(models, samples, placement, _tensor_parallel(model, layers)),
        edges=flow(samples["2"].prefill),
        blocks=placement.blocks,
        block_classes=placement.block_classes,
        co_located=placement.co_located,
        main_device=placement.main_device,
        ties=placement.ties,
        leaks=placement.leaks,
        is_encoder_decoder=is_encoder_decoder,
        vocab_size=0 if head is None else int(getattr(head, "out_features", text_config.vocab_size)),
        generates=generates,
        max_positions=max_positions(model.config),
    )


def _samples(model: Any, layers: dict[str, Layer], generates: bool) -> Samples:
    step = prompt_step(model.config)
    try:
        return _sample_all(model, layers, step, generates)
    except TraceError as error:
        if not layers:
            raise
        # Some forwards read the cache of a layer that was replayed; running every layer gives the same costs.
        _logger.info("tracing every layer, because replaying equal ones failed: %s", error)
        return _sample_all(model, {}, step, generates)


def _sample_all(model: Any, layers: dict[str, Layer], step: int, generates: bool) -> Samples:
    samples = sample(model, layers, sizes_to_sample(step), generates=generates)
    sizes_past = sizes_past_windows(model.config, step)
    if sizes_past and generates:
        samples.past_windows = sample(model, layers, sizes_past, generates=True, decode=False)
    return samples


def _hash(config: PreTrainedConfig, generates: bool) -> str:
    auto_class: AutoClass = "masked-lm" if not generates else "causal-lm"
    written = json.loads(config.to_json_string(use_diff=False))  # with string keys, as in a config.json
    return hash_config(written, "seq2seq-lm" if config.is_encoder_decoder else auto_class)


def _tensor_parallel(model: Any, layers: dict[str, Layer]) -> dict[str, ModuleRole]:
    """How each module may be cut over ranks; empty where that cannot be derived."""
    try:
        return module_roles(derive(model, layers), model)
    except Exception as error:
        _logger.info("no tensor-parallel roles for %s: %s", type(model).__name__, error)
        return {}


def _nodes(
    models: dict[str, Any],
    samples: dict[str, Samples],
    placement: TracedPlacement,
    tensor_parallel: dict[str, ModuleRole],
) -> tuple[Node, ...]:
    reference = samples["2"]
    terms = DECODE_TERMS_WITH_ENCODER if models["2"].config.is_encoder_decoder else DECODE_TERMS
    costs = {key: _costs(of_dtype, terms) for key, of_dtype in samples.items()}
    kv = kv_costs(samples["2"].decode, samples["4"].decode, terms)
    modules = dict(models["2"].named_modules())
    tensors = {name: _tensors(models, name) for name in modules}
    active = {name for phases in costs.values() for phase in phases for name in phase}
    # A module that several layers share is named once by torch, and once more in each replayed layer.
    modules |= {name: models["2"].get_submodule(name) for name in sorted(active - set(modules))}
    kept = [name for name in modules if tensors.get(name) or name in active]
    ranks = _ranks(kept, reference.order)
    return tuple(
        Node(
            name=name,
            class_name=type(modules[name]).__name__,
            order=rank,
            block=next((b for b in placement.blocks if is_under(name, b)), None),
            tensors=tensors.get(name, ()),
            costs={
                key: ItemsizeCost(prefill=pre.get(name, _NOTHING), decode=dec.get(name, _NOTHING))
                for key, (pre, dec) in costs.items()
                if name in pre or name in dec
            },
            kv=kv.get(name),
            num_calls=reference.calls[name],
            tensor_parallel=tensor_parallel.get(name),
        )
        for rank, name in enumerate(ranks)
    )


def _costs(
    samples: Samples, decode_terms: tuple[str, ...]
) -> tuple[Mapping[str, PhaseCost], Mapping[str, PhaseCost]]:
    prefill = phase_costs(list(samples.prefill), PREFILL_TERMS, list(samples.prefill.values()))
    decode: Mapping[str, PhaseCost] = {}
    if samples.decode:
        decode = phase_costs(list(samples.decode), decode_terms, list(samples.decode.values()))
    past_windows = samples.past_windows
    if past_windows is not None:
        # Decode needs none: polynomials from below the window keep growing, and are an upper bound past it.
        beyond = list(past_windows.prefill.values())
        costs = phase_costs(list(past_windows.prefill), PREFILL_TERMS, beyond)
        prefill = with_peaks_of(
            prefill, costs, beyond[0].replays, min(s.prompt for s in past_windows.prefill)
        )
    return prefill, decode


def _ranks(names: list[str], order: dict[str, int]) -> list[str]:
    """`names` by first call; a module that is never called follows its nearest parent that is."""

    def place(name: str) -> int:
        while name not in order and name:
            name = name.rpartition(".")[0]
        return order.get(name, 0)

    return [name for _, _, name in sorted((place(n), i, n) for i, n in enumerate(names))]


def _tensors(models: dict[str, Any], name: str) -> tuple[Tensor, ...]:
    """Tensors that a module owns; one whose dtype follows the model's has dtype None."""
    two, four = (models[key].get_submodule(name) for key in _DTYPES)
    tensors: list[Tensor] = []
    for kind, own, own_in_float32 in (
        ("parameter", two._parameters, four._parameters),
        ("buffer", two._buffers, four._buffers),
    ):
        for key, tensor in own.items():
            if tensor is None:
                continue
            follows = tensor.dtype is _DTYPES["2"] and own_in_float32[key].dtype is _DTYPES["4"]
            scratch = kind == "buffer" and key in two._non_persistent_buffers_set
            tensors.append(
                Tensor(
                    name=key,
                    shape=tuple(tensor.shape),
                    kind="scratch" if scratch else kind,
                    dtype=None if follows else str(tensor.dtype).removeprefix("torch."),
                )
            )
    return tuple(tensors)


__all__ = ["trace", "trace_placement"]
