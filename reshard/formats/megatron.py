"""`megatron`: `mp_rank_XX` files, read under legacy and mcore names, at any TP and PP; written under mcore's.

Source: Megatron-LM, tools/checkpoint/schema_core.py and checkpoint versions 0 to 3.0; transformers' converter
of Megatron GPT-2 for the order of query, key and value in each version.
"""

from typing import Any, Final

from reshard.rules import Rules

from .base import Format, Layout, Options, Source, TargetFile
from .layers import Layers, holder
from .megatron_layout import DIVISIBLE_BY, check, mlp_width, padded_rows, rank_tensors
from .megatron_names import LATEST_FILE, evidence
from .megatron_source import read_megatron

_VERSION: Final = 3.0


def _write(source: Source, options: Options) -> Layout:
    check(source, options.tp_size)
    layers = Layers(Rules(source.model, source.tensors))
    rows = padded_rows(source.model.known()[1].vocab, options.tp_size)
    files = []
    for rank in range(options.tp_size):
        files.append(
            TargetFile(
                name=f"release/mp_rank_{rank:02d}/model_optim_rng.pt",
                container="torch",
                tensors=tuple(rank_tensors(layers, options.tp_size, rank, _VERSION, rows)),
                rank=rank,
                root=("model",),
                extra={
                    "args": _arguments(layers, options.tp_size, rows),
                    "checkpoint_version": _VERSION,
                    "iteration": 0,
                },
            )
        )
    return Layout(
        format="megatron",
        tp_size=options.tp_size,
        files=tuple(files),
        side_files={LATEST_FILE: b"release"},
        notes=(
            "Megatron-LM takes it with --ckpt-format torch and --use-checkpoint-args, at the same degree",
        ),
    )


def _arguments(layers: Layers, tp_size: int, rows: int) -> dict[str, Any]:
    """What `--use-checkpoint-args` reads."""
    geometry, config = layers.rules.geometry, layers.rules.model.config
    is_gpt2 = layers.rules.model.model_type == "gpt2"
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    rope = config.get("rope_parameters") or {}
    first = layers.layers[0]
    qkv_bias = holder(first, "query", "bias") is not None
    return {
        "num_layers": geometry.layers,
        "hidden_size": geometry.hidden,
        "ffn_hidden_size": mlp_width(layers, first),
        "num_attention_heads": geometry.heads,
        "group_query_attention": geometry.kv_heads != geometry.heads,
        "num_query_groups": geometry.kv_heads,
        "kv_channels": geometry.head_dim,
        "max_position_embeddings": positions,
        "seq_length": positions,
        "padded_vocab_size": rows,
        "vocab_size": geometry.vocab,
        "make_vocab_size_divisible_by": DIVISIBLE_BY,
        "tensor_model_parallel_size": tp_size,
        "pipeline_model_parallel_size": 1,
        "swiglu": holder(first, "gate", "weight") is not None,
        "normalization": "LayerNorm" if is_gpt2 else "RMSNorm",
        "norm_epsilon": config.get("rms_norm_eps") or config.get("layer_norm_epsilon"),
        "position_embedding_type": "learned_absolute" if is_gpt2 else "rope",
        "rotary_base": rope.get("rope_theta") or config.get("rope_theta"),
        "rotary_percent": 1.0,
        "add_bias_linear": "bias" in first.rules.get("mlp_output", {}),
        "add_qkv_bias": qkv_bias,
        "qk_layernorm": bool(first.norms),
        "untie_embeddings_and_output_weights": any(r.role == "head" for r in layers.outside.values()),
        "transformer_impl": "transformer_engine",
        "use_legacy_models": False,
        "ckpt_format": "torch",
    }


FORMAT: Final = Format(
    name="megatron",
    evidence=evidence,
    read=read_megatron,
    write=_write,
)
