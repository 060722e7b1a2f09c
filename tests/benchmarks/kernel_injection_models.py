"""Small models of the families that DeepSpeed's kernels load, trained to continue this repository's licence.

Trained, because random weights leave greedy tokens to rounding. Also each family with one setting that the
injected blocks ignore, which `reshard.loaders.injected_blocks` refuses.
"""

from pathlib import Path
from typing import Any, Final

import torch

_LICENCE: Final = Path(__file__).resolve().parents[2] / "LICENSE"
_TEXT_BYTES: Final = 1200
_STEPS: Final = 800

_SIZES: Final[dict[str, dict[str, Any]]] = {
    "bloom": {"hidden_size": 256, "n_head": 4, "n_layer": 3},
    "opt": {
        "hidden_size": 256,
        "word_embed_proj_dim": 256,
        "ffn_dim": 1024,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "max_position_embeddings": 256,
    },
    "gpt_neox": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "rotary_pct": 0.25,
        "max_position_embeddings": 256,
    },
    "gptj": {"n_embd": 256, "n_head": 4, "n_layer": 3, "rotary_dim": 32, "n_positions": 256},
    "gpt_neo": {
        "hidden_size": 256,
        "num_heads": 4,
        "num_layers": 3,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "window_size": 256,
        "max_position_embeddings": 256,
    },
}
FAMILIES: Final = tuple(_SIZES)

#: Settings that the injected blocks ignore, each named `family:setting`.
IGNORED: Final[dict[str, Any]] = {
    "bloom:apply_residual_connection_post_layernorm": True,
    "opt:do_layer_norm_before": False,
    "gpt_neox:use_parallel_residual": False,
    "gpt_neox:rotary_emb_base": 500,
    "gpt_neox:hidden_act": "relu",
    "gptj:activation_function": "relu",
    "gpt_neo:activation_function": "relu",
    "gpt_neo:window_size": 20,
}


def text() -> torch.Tensor:
    """The licence's first bytes as token ids, [bytes]."""
    raw = b" ".join(_LICENCE.read_bytes().split())[:_TEXT_BYTES]
    return torch.tensor(list(raw), dtype=torch.int64)


def train(case: str, folder: Path) -> float:
    """Write the checkpoint of a case, which knows the text; returns its last loss in nats per byte.

    Args:
        case: one of `FAMILIES` or of `IGNORED`.
        folder: where to write.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_config(_config(case)).train().to(device)
    # Biases and norms start as zeros and ones, which would hide that one is lost or taken for another.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.05
    tokens = text().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, _STEPS)
    loss = torch.zeros(())
    for _ in range(_STEPS):
        starts = torch.randint(0, len(tokens) - 64, (16,)).tolist()
        batch = torch.stack([tokens[start : start + 64] for start in starts])
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.cpu().eval().save_pretrained(folder)
    return float(loss.detach())


def _config(case: str) -> Any:
    import transformers

    family, _, setting = case.partition(":")
    dropout = {"bloom": ("hidden_dropout", "attention_dropout"), "opt": ("dropout", "attention_dropout")}
    values: dict[str, Any] = _SIZES[family] | dict.fromkeys(dropout.get(family, ()), 0.0)
    values |= {"vocab_size": 256, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    if setting:
        values[setting] = IGNORED[case]
    return transformers.AutoConfig.for_model(family, **values)
