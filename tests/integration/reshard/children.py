"""The `reshard` command as a child process, what it leaves behind, and checkpoints quickly written."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).resolve().parents[3]
#: What the checkpoints written here have in common.
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}


def command(*arguments: str | Path) -> list[str]:
    """What a shell would be given."""
    return [sys.executable, "-m", "cli.reshard", *map(str, arguments)]


def run(
    *arguments: str | Path, prefix: Sequence[str] = (), **kwargs: Any
) -> "subprocess.CompletedProcess[str]":
    """The command, behind `prefix`, run to its end."""
    return subprocess.run(
        [*prefix, *command(*arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,
    )


def made(*arguments: str | Path, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    """The command, which must succeed."""
    done = run(*arguments, **kwargs)
    assert done.returncode == 0, done.stderr
    return done


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file under `folder`, hidden ones too, with its size and SHA-256; folders without."""
    found = {}
    for path in sorted(folder.rglob("*")):
        raw = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (len(raw), hashlib.sha256(raw).hexdigest())
    return found


def names(folder: Path) -> set[str]:
    """What stands in `folder`, hidden or not."""
    return {p.name for p in folder.iterdir()}


def refused(done: "subprocess.CompletedProcess[str]", *words: str, status: int = 3) -> None:
    """Check that a run ended with one sentence that has `words` in it."""
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("reshard: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)


def llama(folder: Path, *, layers: int, hidden: int, files: int = 2, seed: int = 0) -> Path:
    """Write a float16 checkpoint with Llama's names in `folder`, of random bits that are finite numbers."""
    random = np.random.default_rng(seed)
    shapes = _shapes(layers, hidden)
    held: list[dict[str, Any]] = [{} for _ in range(files)]
    for number, (name, shape) in enumerate(shapes.items()):
        # Exponents below the largest: neither infinite nor NaN.
        bits = random.integers(0, 0x7BFF, size=shape, dtype=np.uint16)
        held[number % files][name] = bits.view(np.float16)
    folder.mkdir(parents=True)
    weight_map = {}
    for number, tensors in enumerate(held, 1):
        file = f"model-{number:05d}-of-{files:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = CONFIG | {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _shapes(layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    vocab = CONFIG["vocab_size"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(layers):
        block = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{block}.{norm}.weight"] = (hidden,)
        for part, rows in (("q", hidden), ("k", hidden // 2), ("v", hidden // 2), ("o", hidden)):
            found[f"{block}.self_attn.{part}_proj.weight"] = (rows, hidden)
        for part in ("gate", "up"):
            found[f"{block}.mlp.{part}_proj.weight"] = (2 * hidden, hidden)
        found[f"{block}.mlp.down_proj.weight"] = (hidden, 2 * hidden)
    return found
