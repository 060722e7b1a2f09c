"""Builds a transformers model with shapes but no weights, and the inputs that `generate()` passes to it."""

import copy
import inspect
from typing import Any, Final

import torch
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from planner.errors import TraceError

# The output fields in which models return their cache or state for the next step.
CACHE_FIELDS: Final = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


def build(config: PreTrainedConfig, model_class: type, dtype: torch.dtype, device: str = "meta") -> Any:
    """The model in evaluation mode, with parameters that are not initialised.

    Modules that the class keeps in float32 are in float32, as after `from_pretrained`.

    Args:
        config: its configuration; not changed.
        model_class: a transformers model class.
        dtype: dtype of the parameters.
        device: device of the parameters: `meta`, or `cpu` under a FakeTensorMode.

    Raises:
        TraceError: the class cannot be built from this configuration.
    """
    config = copy.deepcopy(config)  # building writes the attention implementation and dtype into it
    try:
        with torch.device(device), no_init_weights():
            model = model_class._from_config(config, dtype=dtype)  # type: ignore[attr-defined]
            model.eval()
            model.tie_weights()  # skipped by no_init_weights
    except Exception as error:
        raise TraceError(
            f"{model_class.__name__} cannot be built from its configuration: {type(error).__name__}: {error}"
        ) from error
    in_float32 = [name for name, target in model._get_dtype_plan(dtype).items() if target is torch.float32]
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            parts = f"{name}.{key}".split(".")
            if (
                parameter is not None
                and parameter.is_floating_point()
                and any(k in parts for k in in_float32)
            ):
                parameter.data = parameter.data.to(torch.float32)
    return model


def takes(model: Any, argument: str) -> bool:
    """Whether the model's forward has a parameter called `argument`."""
    return argument in inspect.signature(type(model).forward).parameters


def prefill_inputs(model: Any, batch: int, prompt: int, device: torch.device) -> dict[str, Any]:
    """The arguments of `generate()`'s first forward, for prompts without padding.

    `generate()` drops an all-ones mask for decoder-only models, keeps it for encoder-decoders, passes
    position ids where the forward takes them and requests only the last position's logits.

    Args:
        model: a model with a language-model head.
        batch: number of prompts.
        prompt: tokens of each prompt.
        device: device of the inputs.
    """
    ids = torch.zeros(batch, prompt, dtype=torch.long, device=device)
    inputs: dict[str, Any] = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["decoder_input_ids"] = ids.new_zeros(batch, 1)
    elif takes(model, "position_ids"):
        inputs["position_ids"] = torch.zeros_like(ids)
    if takes(model, "use_cache"):
        inputs["use_cache"] = True
    if takes(model, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    return inputs


def cache_of(output: Any) -> tuple[str, Any] | None:
    """Field name and value of the cache in a model's output, or None when there is none."""
    for field in CACHE_FIELDS:
        value = getattr(output, field, None)
        if value is not None:
            return field, value
    return None


def decode_inputs(
    model: Any, prefill: dict[str, Any], cache: tuple[str, Any], encoder_state: torch.Tensor | None
) -> dict[str, Any]:
    """The arguments of `generate()`'s next forward, for one new token.

    Args:
        model: a model with a language-model head.
        prefill: arguments of the first forward, from `prefill_inputs`.
        cache: field name and value of the cache, from `cache_of`.
        encoder_state: the encoder's last hidden state; None for a model without an encoder.
    """
    field, value = cache
    inputs: dict[str, Any] = {k: prefill[k] for k in ("use_cache", "logits_to_keep") if k in prefill}
    ids = prefill["input_ids"]
    token = ids.new_zeros(ids.shape[0], 1)
    inputs[field] = value
    if encoder_state is None:
        inputs["input_ids"] = token
        if "position_ids" in prefill:
            inputs["position_ids"] = torch.zeros_like(token)
        return inputs
    inputs["decoder_input_ids"] = token
    inputs["attention_mask"] = prefill["attention_mask"]
    if takes(model, "encoder_outputs"):
        from transformers.modeling_outputs import BaseModelOutput

        encoded = BaseModelOutput(last_hidden_state=encoder_state)
        # Encoders with experts return router logits as well; a decode step does not use them.
        encoded.router_logits = None
        inputs["encoder_outputs"] = encoded
    else:
        inputs["input_ids"] = ids
    return inputs
