"""Runs the phases of a model at the sizes that its cost polynomials are fitted to."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import torch

from planner.errors import TraceError
from planner.tracing.cost_tracer import CostTracer, PhaseSample
from planner.tracing.fits import Size
from planner.tracing.layers import Layer
from planner.tracing.meta_model import cache_of, decode_inputs, prefill_inputs

_META: Final = torch.device("meta")
_CHUNK_NAMES: Final = ("chunk_size", "mamba_chunk_size")
_WINDOW_NAMES: Final = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size")
_POSITION_NAMES: Final = ("max_position_embeddings", "max_seq_len")
_DEFAULT_STEP: Final = 64


@dataclass(slots=True)
class Samples:
    """Samples of both phases at several sizes, and what does not depend on the size.

    Attributes:
        prefill, decode: samples by size.
        order: module fqn → rank by first call in the first prefill.
        calls: number of forwards of each module in it.
        past_windows: samples at lengths past a sliding window, or None.
    """

    prefill: dict[Size, PhaseSample]
    decode: dict[Size, PhaseSample]
    order: dict[str, int]
    calls: Counter[str]
    past_windows: "Samples | None" = None


def prompt_step(config: Any) -> int:
    """Prompt tokens whose multiples are sampled: whole chunks, within the model's positions and windows."""
    text_config = config.get_text_config(decoder=True)
    chunks = [getattr(text_config, n, None) for n in _CHUNK_NAMES]
    step = max([_DEFAULT_STEP, *(c for c in chunks if isinstance(c, int))])
    for limit in (max_positions(config), *_windows(text_config)):
        if limit is not None and limit < 4 * step + 2:
            step = max(2, (limit - 2) // 4)
    return step


def _windows(text_config: Any) -> list[int]:
    values = [getattr(text_config, name, None) for name in _WINDOW_NAMES]
    return [w for w in values if isinstance(w, int) and not isinstance(w, bool) and w > 0]


def max_positions(config: Any) -> int | None:
    """The longest sequence that the configuration allows; None when it states no limit."""
    text_config = config.get_text_config(decoder=True)
    for name in _POSITION_NAMES:
        longest = getattr(text_config, name, None)
        if isinstance(longest, int) and longest > 0:
            return longest
    return None


def sizes_to_sample(step: int) -> list[tuple[int, int]]:
    """Six (batch, prompt) pairs that determine a prefill polynomial, and a seventh to check it.

    Batches start at 2: at batch 1 some copies are views, and a fit to them would be wrong for larger batches.
    """
    grid = [(batch, step * n) for batch in (2, 3) for n in (1, 2, 3)]
    return [*grid, (4, 4 * step if step > 2 else 3 * step - 1)]


def sizes_past_windows(config: Any, step: int) -> list[tuple[int, int]]:
    """Such pairs past the longest sliding window; none without a window within the positions."""
    text_config = config.get_text_config(decoder=True)
    limit = max_positions(config)
    windows = [w for w in _windows(text_config) if limit is None or w + 4 * step + 2 <= limit]
    if not windows:
        return []
    return [(batch, max(windows) + prompt) for batch, prompt in sizes_to_sample(step)]


def sample(
    model: Any,
    layers: dict[str, Layer],
    sizes: list[tuple[int, int]],
    *,
    generates: bool,
    decode: bool = True,
) -> Samples:
    """Traces prefill, and decode where there is one, at several sizes.

    Args:
        model: from `planner.tracing.meta_model.build`.
        layers: its equal layers; empty to run every layer.
        sizes: (batch, prompt tokens) pairs; the last one checks the fit.
        generates: whether `generate()` applies to the model.
        decode: whether to trace decode as well, of a model that generates.

    Raises:
        TraceError: the forward needs data, or an operation has no shape function.
    """
    result = Samples(prefill={}, decode={}, order={}, calls=Counter())
    # Decode polynomials have no squares: two prompts determine them, and the last size checks them.
    stepped = set(sorted({prompt for _, prompt in sizes})[:2]) | {sizes[-1][1]} if decode else set()
    for batch, prompt in sizes:
        try:
            _sample_one(model, layers, batch, prompt, generates, prompt in stepped, result)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(
                f"{type(model).__name__} cannot be traced without weights: {type(error).__name__}: {error}"
            ) from error
    return result


def _sample_one(
    model: Any,
    layers: dict[str, Layer],
    batch: int,
    prompt: int,
    generates: bool,
    decode: bool,
    result: Samples,
) -> None:
    tracer = CostTracer(model, layers)
    inputs = prefill_inputs(model, batch, prompt, _META)
    output, costs = tracer.phase(inputs, generates)
    result.prefill[Size(batch, prompt)] = costs
    if not result.order:
        result.order, result.calls = dict(tracer.order), Counter(tracer.calls)
    if not (generates and decode):
        return
    cache = cache_of(output)
    if cache is None:
        raise TraceError(f"{type(model).__name__} returns no cache, so its decode step cannot be traced")
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    encoder_state = output.encoder_last_hidden_state if is_encoder_decoder else None
    seen = 1 if is_encoder_decoder else prompt
    # An encoder-decoder's context does not grow with its prompt, so a second step provides another context.
    for step in range(1, 3 if is_encoder_decoder else 2):
        following = decode_inputs(model, inputs, cache, encoder_state)
        del output
        output, costs = tracer.phase(following, generates)
        result.decode[Size(batch, prompt, seen + step)] = costs
        cache = cache_of(output) or cache
        del following
