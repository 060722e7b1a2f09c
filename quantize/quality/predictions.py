"""`python -m quantize.quality.predictions`: what a model on the CPU predicts for every token of a text.

A child process of `quantize.quality.model`. The first run, on the plain model, keeps its tokens and logits;
the second compares its own with them as it goes, so no process holds two models.
"""

import argparse
import json
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy, log_softmax

#: Names of the files in the folder that both runs share.
TOKENS, LOGITS = "tokens.npy", "logits.npy"
#: Status of a refusal; the last line of standard error says why.
REFUSED = 3
#: How the names of a tokenizer's files begin.
_TOKENIZERS = ("tokenizer", "vocab", "spiece", "sentencepiece")


def main() -> None:
    """Load, predict, write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="given for the plain model, which comes first")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--report", type=Path, required=True)
    args = parser.parse_args()
    _check_architecture(args.checkpoint)
    if args.text is not None:
        np.save(args.shared / TOKENS, _tokens(args.checkpoint, args.text, args.max_tokens))
    tokens = torch.from_numpy(np.load(args.shared / TOKENS))
    start = time.perf_counter()
    model = _load(args.checkpoint, args.dtype)
    window = _window(model.config, args.window)
    _check_tokens(model.config, tokens)
    report = (
        _keep(model, tokens, window, args.shared)
        if args.text
        else _compare(model, tokens, window, args.shared)
    )
    report |= {
        "num_tokens": len(tokens),
        "window_tokens": window,
        "elapsed_s": time.perf_counter() - start,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    args.report.write_text(json.dumps(report))


def _keep(model: Any, tokens: torch.Tensor, window: int, shared: Path) -> dict[str, Any]:
    """Predict, and keep the logits."""
    loss, kept = 0.0, None
    for first, logits, wanted in predictions(model, tokens, window):
        if kept is None:
            shape = (len(tokens) - 1, logits.shape[-1])
            _check_disk(shared, 4 * math.prod(shape))
            kept = np.lib.format.open_memmap(shared / LOGITS, "w+", np.float32, shape)
        kept[first : first + len(wanted)] = logits.numpy()
        loss += float(cross_entropy(logits, wanted, reduction="sum"))
    assert kept is not None
    kept.flush()
    return {"perplexity": math.exp(loss / (len(tokens) - 1))}


def _compare(model: Any, tokens: torch.Tensor, window: int, shared: Path) -> dict[str, Any]:
    """Predict, and compare the logits with those that were kept."""
    kept = np.load(shared / LOGITS, mmap_mode="r")
    loss = energy = noise = divergence = 0.0
    largest, agreeing = 0.0, 0
    for first, logits, wanted in predictions(model, tokens, window):
        if logits.shape[-1] != kept.shape[-1]:
            _refuse(
                f"the models have {kept.shape[-1]} and {logits.shape[-1]} logits: they are different models"
            )
        plain = torch.from_numpy(np.array(kept[first : first + len(wanted)]))
        loss += float(cross_entropy(logits, wanted, reduction="sum"))
        # Softmax ignores what all logits of a position have in common.
        centred = plain - plain.mean(-1, keepdim=True)
        error = (logits - logits.mean(-1, keepdim=True) - centred).double()
        energy += float(centred.double().square().sum())
        noise += float(error.square().sum())
        largest = max(largest, float(error.abs().max()))
        expected = log_softmax(plain.double(), -1)
        divergence += float((expected.exp() * (expected - log_softmax(logits.double(), -1))).sum())
        agreeing += int((plain.argmax(-1) == logits.argmax(-1)).sum())
    count = len(tokens) - 1
    return {
        "perplexity": math.exp(loss / count),
        "logits_relative_error": math.sqrt(noise / energy) if energy else 0.0,
        "logits_max_abs_error": largest,
        "kl_divergence_nats": divergence / count,
        "top1_agreement": agreeing / count,
    }


@torch.inference_mode()
def predictions(
    model: Any, tokens: torch.Tensor, window: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Logits for every token but the first, each once.

    Windows overlap by half and the second half of each is used (the first window: all), so every token, those
    of the first window excepted, is predicted from at least half a window before it.

    Args:
        model: a causal language model.
        tokens: of the text, int64, flat.
        window: tokens of one forward.

    Yields:
        How many tokens were predicted before, float32 logits [positions, vocabulary], the tokens there.
    """
    done, step = 0, max(1, window // 2)
    for start in range(0, len(tokens), step):
        end = min(start + window, len(tokens))
        if done < end - 1:
            logits = model(tokens[None, start:end], use_cache=False).logits[0, done - start : end - 1 - start]
            yield done, logits.float(), tokens[done + 1 : end]
            done = end - 1


def _load(checkpoint: Path, dtype: str) -> Any:
    # Missing weights would be random numbers, and the measured error meaningless.
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    model, info = load(checkpoint, dtype=getattr(torch, dtype), output_loading_info=True)
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            names = ", ".join(sorted(str(name) for name in info[problem])[:5])
            _refuse(f"{checkpoint} does not fit its configuration: {problem} {names}")
    # transformers keeps a bitsandbytes checkpoint's norms as they are stored; what reaches them has `dtype`.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(getattr(torch, dtype))
    return model.eval()


def _check_architecture(checkpoint: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    names = config.architectures or []
    if config.is_encoder_decoder or config.model_type not in known or any("MaskedLM" in n for n in names):
        _refuse(
            f"{checkpoint} is a {config.model_type}; perplexity is measured for causal language models only"
        )


def _tokens(checkpoint: Path, text: Path, limit: int | None) -> Any:
    try:
        words = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"{text} is no UTF-8 text: {error.reason} at byte {error.start}")
    # Without a tokenizer's files transformers builds an empty tokenizer instead of failing.
    if not any(path.name.startswith(_TOKENIZERS) for path in checkpoint.iterdir()):
        _refuse(f"{checkpoint} has no tokenizer; put its files there, such as tokenizer.json")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        _refuse(
            f"{checkpoint} has no tokenizer that loads ({str(error).splitlines()[0]}); put its files there"
        )
    # The tokenizer warns of texts longer than its model's window, which are what this is made for.
    ids = tokenizer(words, verbose=False)["input_ids"][:limit]
    if len(ids) < 2:
        _refuse(f"{text} has {len(ids)} tokens; at least 2 are needed, one to predict the other")
    return np.array(ids, np.int64)


def _window(config: Any, wanted: int) -> int:
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    return min(wanted, longest) if longest else wanted


def _check_tokens(config: Any, tokens: torch.Tensor) -> None:
    rows = config.get_text_config().vocab_size
    if int(tokens.max()) >= rows:
        _refuse(
            f"the tokenizer has token {int(tokens.max())}, the model's vocabulary {rows}: they do not match"
        )


def _check_disk(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        _refuse(
            f"the plain model's logits take {needed_bytes} bytes in {folder}, which has {free_bytes}; "
            "measure fewer tokens, or set TMPDIR"
        )


def _refuse(why: str) -> NoReturn:
    print(why, file=sys.stderr)
    raise SystemExit(REFUSED)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
