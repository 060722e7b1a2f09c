"""A model from one rank's shards, cut by roles: as little as it takes, and nothing that knows a runtime.

Every parameter is replaced by the rank's, modules that own row-parallel ones sum over the ranks, biases that
are to be added once are zero on all ranks but the first, and attention counts the heads that are left.
"""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from safetensors.torch import load_file
from torch import distributed, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from reshard.role_cuts import Names
from reshard.roles import FILE, read

#: Attributes of attention modules that count heads, or features of all heads, where these are cut.
_COUNTED: Final = (
    "num_heads", "num_attention_heads", "n_heads", "n_head", "num_key_value_heads", "num_kv_heads",
    "embed_dim", "hidden_size", "inner_dim", "all_head_size", "split_size",
    # Linear attention.
    "num_k_heads", "num_v_heads", "key_dim", "value_dim", "conv_dim",
)  # fmt: skip
#: Families whose attention looks its heads up in the configuration each time.
_COUNTED_BY_CONFIGURATION: Final = ("phi3",)


def load(folder: Path, auto_class: str, rows: Iterable[str]) -> Any:
    """This rank's half of the model in `folder`.

    Args:
        folder: what `reshard --roles` wrote.
        auto_class: of transformers.
        rows: the row-parallel parameters, by their names in the running model.
    """
    rank, tp_size = distributed.get_rank(), distributed.get_world_size()
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, auto_class).from_config(config, dtype=torch.float32).eval()
    shards = sorted(folder.glob(f"model-rank-{rank:02d}-of-{tp_size:02d}*.safetensors"))
    held = running(model, {name: t for shard in shards for name, t in load_file(shard).items()})
    cut = _fill(model, held)
    _add_once(model, read(folder / FILE).bias_once, rank)
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in rows):
        model.get_submodule(owner).register_forward_hook(_summed)
    _count_heads(model, cut, rank, tp_size)
    _slice_slopes(model, rank, tp_size)
    return model


def running(model: Any, held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors as the running model's parameters: renamed, experts stacked."""
    ways = get_model_conversion_mapping(model)
    renamings = [way for way in ways if isinstance(way, WeightRenaming)]
    converters = [way for way in ways if isinstance(way, WeightConverter)]
    by_pattern = {pattern: way for way in converters for pattern in way.source_patterns}
    found: dict[str, torch.Tensor] = {}
    gathered: dict[str, WeightConverter] = {}
    known = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for name in sorted(held, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if pattern is None:
            found[key] = held[name]
        else:
            way = gathered.setdefault(key, copy.deepcopy(by_pattern[pattern]))
            way.add_tensor(key, name, pattern, held[name])
    for key, way in gathered.items():
        found |= way.convert(key, model=model, config=model.config)
    return {key: t[0] if isinstance(t, list) else t for key, t in found.items()}


def _fill(model: Any, held: dict[str, torch.Tensor]) -> set[str]:
    """Put the rank's tensors in their places; the modules of which something is cut."""
    cut, left = set(), dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in held.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf not in module._parameters:
            continue  # a buffer, which the model computes itself
        if module._parameters[leaf].shape != tensor.shape:
            cut.add(owner)
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        if leaf == "weight" and hasattr(module, "nf"):
            module.nf = tensor.shape[1]
        left.pop(name)
    model.tie_weights()
    lost = [n for n, old in left.items() if dict(model.named_parameters(remove_duplicate=False))[n] is old]
    assert not lost, f"the shards lack {lost}"
    return cut


def _add_once(model: Any, patterns: tuple[str, ...], rank: int) -> None:
    names = dict(model.named_parameters(remove_duplicate=False))
    for name in Names(names).matches(dict.fromkeys(patterns, True)):
        if rank:
            names[name].data.zero_()


def _summed(module: nn.Module, _inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (_summed(module, _inputs, output[0]), *output[1:])
    output = output.contiguous()
    distributed.all_reduce(output)
    return output


def _count_heads(model: Any, cut: set[str], rank: int, tp_size: int) -> None:
    """Attention modules that own something that is cut have fewer heads now."""
    attentions = {
        owner
        for name in cut
        if (owner := name.rpartition(".")[0])
        and "att" in f"{owner} {type(model.get_submodule(owner))}".lower()
    }
    for owner in attentions:
        module = model.get_submodule(owner)
        for attribute in _COUNTED:
            value = module.__dict__.get(attribute)
            if type(value) is int and value > 1:
                assert value % tp_size == 0, f"{owner}.{attribute} is {value}"
                setattr(module, attribute, value // tp_size)
        if model.config.model_type in _COUNTED_BY_CONFIGURATION:
            module.config = copy.copy(module.config)
            module.config.num_attention_heads //= tp_size
        if owner + ".q_proj" not in cut and hasattr(module, "q_norm"):
            # A norm over all heads needs them all; what follows are the rank's.
            for norm in (module.q_norm, module.k_norm):
                norm.register_forward_hook(lambda _module, _inputs, output: output.chunk(tp_size, -1)[rank])


def _slice_slopes(model: Any, rank: int, tp_size: int) -> None:
    """ALiBi's slopes are of heads, but no parameters: a rank takes those of its own."""
    match model.config.model_type:
        case "bloom":
            from transformers.models.bloom import modeling_bloom

            for module in model.modules():
                if isinstance(module, modeling_bloom.BloomModel):
                    module.num_heads //= tp_size
            _share(modeling_bloom, "_get_alibi_slopes", 0, rank, tp_size, is_local=True)
        case "falcon" if model.config.alibi:
            from transformers.models.falcon import modeling_falcon

            _share(modeling_falcon, "build_alibi_tensor", 1, rank, tp_size)
        case "mpt":
            from transformers.models.mpt import modeling_mpt

            _share(modeling_mpt, "build_mpt_alibi_tensor", 0, rank, tp_size)


def _share(
    namespace: Any, name: str, position: int, rank: int, tp_size: int, *, is_local: bool = False
) -> None:
    """Let a function of the number of heads give a rank's share of `[batch ·] heads, …`."""
    whole: Callable[..., torch.Tensor] = getattr(namespace, name)
    original = getattr(whole, "of_all_ranks", whole)

    def local(*arguments: Any, **options: Any) -> torch.Tensor:
        given = list(arguments)
        num_heads = (given[position] if position < len(given) else options["num_heads"]) * (
            tp_size if is_local else 1
        )
        if position < len(given):
            given[position] = num_heads
        else:
            options["num_heads"] = num_heads
        found = original(*given, **options)
        heads = found.unflatten(0, (-1, num_heads)).chunk(tp_size, 1)[rank]
        return heads.flatten(0, 1)

    local.of_all_ranks = original  # type: ignore[attr-defined]
    setattr(namespace, name, local)
