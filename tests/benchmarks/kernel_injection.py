"""Proves kernel injection from `deepspeed` pre-shards on real GPUs: does it give the plain model's tokens?

`python tests/benchmarks/kernel_injection.py OUT.json` needs two CUDA GPUs, transformers 4.43.4 and DeepSpeed.
For each family it trains a small model to continue this repository's licence, so that greedy tokens mean
something and their margins are wide, cuts it with reshard for tp 2 in float16, and generates three ways:

plain      the whole model in float16 on one GPU, transformers alone
sliced     DeepSpeed's kernels at tp 2, the whole checkpoint read and cut by DeepSpeed itself
injected   DeepSpeed's kernels at tp 2, from reshard's pre-shards through `load_kernel_injection`

`injected` must give the tokens of `plain`, logits within 1 % of the largest, and up to the head the bits of
`sliced`. (In the head itself DeepSpeed adds GPT-J's bias in a kernel of its own when it loads pre-shards, and
together with the product when it cuts a whole model; so the last bit of a logit may differ there.)
`--work FOLDER` keeps checkpoints and shards, and uses those that are already there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

_ROOT: Final = Path(__file__).resolve().parents[2]
_FAMILIES: Final = ("bloom", "opt", "gpt_neox", "gptj", "gpt_neo")
_TP_SIZE: Final = 2
_TOLERANCE: Final = 0.01  # of the largest logit
_NEW_TOKENS: Final = 24
_PROMPT_TOKENS: Final = 16
_PROMPTS_AT: Final = (40, 301, 760, 1100)  # bytes into the text
_TEXT_BYTES: Final = 1200
_STEPS: Final = 800


def _text() -> torch.Tensor:
    """The text's bytes as token ids, [bytes]."""
    raw = b" ".join((_ROOT / "LICENSE").read_bytes().split())[:_TEXT_BYTES]
    return torch.tensor(list(raw), dtype=torch.int64)


def _config(family: str) -> Any:
    """A small model of the family: 4 heads of 64, the smallest that the kernels' rotary code is made for."""
    import transformers

    sizes: dict[str, dict[str, Any]] = {
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
    dropout = {"bloom": ("hidden_dropout", "attention_dropout"), "opt": ("dropout", "attention_dropout")}
    off = dict.fromkeys(dropout.get(family, ()), 0.0)
    ids = {"vocab_size": 256, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return transformers.AutoConfig.for_model(family, **sizes[family], **off, **ids)


def _train(family: str, folder: Path) -> float:
    """Write a checkpoint that knows the text; returns its last loss in nats per token."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_config(_config(family)).train().to(device)
    # Biases and norms start as zeros and ones, which would hide that one is lost or taken for another.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.05
    text = _text().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, _STEPS)
    loss = torch.zeros(())
    for _ in range(_STEPS):
        starts = torch.randint(0, len(text) - 64, (16,)).tolist()
        batch = torch.stack([text[start : start + 64] for start in starts])
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.cpu().eval().save_pretrained(folder)
    return float(loss.detach())


def _generate(model: Any, generate: Callable[..., Any]) -> dict[str, Any]:
    """Greedy tokens, their logits at every step, the prompt's logits and the head's input, on the CPU."""
    text = _text()
    prompts = torch.stack([text[at : at + _PROMPT_TOKENS] for at in _PROMPTS_AT]).to("cuda")
    mask = torch.ones_like(prompts)
    with torch.no_grad():
        out = generate(
            input_ids=prompts,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=_NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        hidden: list[torch.Tensor] = []
        model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
        logits = model(input_ids=prompts, attention_mask=mask).logits
    return {
        "tokens": out.sequences[:, _PROMPT_TOKENS:].cpu(),
        "steps": torch.stack(out.logits, 1).float().cpu(),
        "prompt": logits.float().cpu(),
        "hidden": hidden[0].cpu(),
    }


def _plain(family: str, work: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = work / family / "hf"
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float16).eval().to("cuda")
    torch.save(_generate(model, model.generate), work / family / "plain.pt")


def _sliced(family: str, work: Path) -> None:
    import deepspeed
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        work / family / "hf", torch_dtype=torch.float16, attn_implementation="eager"
    )
    engine = deepspeed.init_inference(
        model.eval(),
        tensor_parallel={"tp_size": _TP_SIZE},
        dtype=torch.float16,
        replace_with_kernel_inject=True,
        max_out_tokens=128,
    )
    _save_rank(engine, family, work, "sliced", seconds=0.0)


def _injected(family: str, work: Path) -> None:
    from reshard.loaders.kernel_injection import load_kernel_injection

    start = time.perf_counter()
    engine = load_kernel_injection(work / family / "tp2", dtype=torch.float16, max_out_tokens=128)
    _save_rank(engine, family, work, "injected", seconds=time.perf_counter() - start)


def _save_rank(engine: Any, family: str, work: Path, role: str, *, seconds: float) -> None:
    """Generate on every rank; each writes what it got, since every one must have got the same."""
    result = _generate(engine.module, engine.generate)
    result["load_s"] = seconds
    torch.save(result, work / family / f"{role}-{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


def _compare(family: str, work: Path) -> dict[str, Any]:
    """One family's verdict: tokens, logits, margins."""
    plain = torch.load(work / family / "plain.pt")
    roles = {
        role: [torch.load(work / family / f"{role}-{rank}.pt") for rank in range(_TP_SIZE)]
        for role in ("sliced", "injected")
    }
    scale = float(plain["prompt"].abs().max())
    best = plain["steps"].topk(2, -1).values
    verdict: dict[str, Any] = {
        "largest_logit": scale,
        "smallest_greedy_margin": float((best[..., 0] - best[..., 1]).min()),
        "plain_continues_text": _continues_text(plain["tokens"]),
        "load_s": max(rank["load_s"] for rank in roles["injected"]),
        "num_tokens_compared": plain["tokens"].numel(),
    }
    for role, ranks in roles.items():
        diff = max(float((rank["prompt"] - plain["prompt"]).abs().max()) for rank in ranks)
        verdict[role] = {
            "tokens_equal": all(torch.equal(rank["tokens"], plain["tokens"]) for rank in ranks),
            "logits_max_abs_difference": diff,
            "logits_within_tolerance": diff <= _TOLERANCE * scale,
        }
    injected = verdict["injected"]
    for claim, key in (("bits_before_head_as_sliced", "hidden"), ("bits_of_logits_as_sliced", "prompt")):
        pairs = zip(roles["injected"], roles["sliced"], strict=True)
        injected[claim] = all(torch.equal(one[key], other[key]) for one, other in pairs)
    verdict["passed"] = all(
        injected[claim] for claim in ("tokens_equal", "logits_within_tolerance", "bits_before_head_as_sliced")
    )
    return verdict


def _continues_text(tokens: torch.Tensor) -> float:
    """Share of tokens that are the text's own: that the model learned it at all."""
    text = _text()
    starts = (at + _PROMPT_TOKENS for at in _PROMPTS_AT)
    wanted = torch.stack([text[start : start + _NEW_TOKENS] for start in starts])
    return float((tokens == wanted).float().mean())


def _start(role: str, family: str, work: Path) -> subprocess.Popen[bytes]:
    """A role's processes, their output in `work`."""
    command = [sys.executable, __file__, "--role", role, "--work", str(work), "--families", family]
    if role in ("sliced", "injected"):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(_TP_SIZE)]
        command = [sys.executable, *launcher, *command[1:]]
    environment = dict(
        os.environ, PYTHONPATH=f"{_ROOT}:{os.environ.get('PYTHONPATH', '')}", OMP_NUM_THREADS="2"
    )
    (work / family).mkdir(parents=True, exist_ok=True)
    with (work / family / f"{role}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _checkpoint(family: str, work: Path) -> None:
    if not (work / family / "hf").exists():
        print(f"{family}: trained to {_train(family, work / family / 'hf'):.3f} nats per byte", flush=True)


def _cut(family: str, work: Path) -> None:
    from reshard.job import Request
    from reshard.run import reshard

    if not (work / family / "tp2").exists():
        target: dict[str, Any] = {"degrees": (_TP_SIZE,), "format": "deepspeed", "dtype": "float16"}
        reshard(Request(source=str(work / family / "hf"), output=work / family / "tp2", **target))


_ROLES: Final = {
    "checkpoint": _checkpoint,
    "cut": _cut,
    "plain": _plain,
    "sliced": _sliced,
    "injected": _injected,
}


def _run(families: list[str], work: Path) -> dict[str, Any]:
    """Run the roles of all families, those side by side that do not wait for each other; compare."""
    failed: dict[str, list[str]] = {family: [] for family in families}
    for roles in (("checkpoint",), ("cut",), ("plain", "sliced", "injected")):
        failed |= _together([family for family in families if not failed[family]], roles, work)
    return {
        family: {"passed": False, "failed": failed[family]} if failed[family] else _compare(family, work)
        for family in families
    }


def _together(families: list[str], roles: tuple[str, ...], work: Path) -> dict[str, list[str]]:
    """Run the roles of all families side by side; returns the roles that failed, whose logs are printed."""
    running = [(family, role, _start(role, family, work)) for family in families for role in roles]
    failed: dict[str, list[str]] = {family: [] for family in families}
    for family, role, process in running:
        if process.wait():
            failed[family].append(role)
            print(f"--- {family} {role}\n" + (work / family / f"{role}.log").read_text()[-4000:], flush=True)
    return failed


def _report(verdicts: dict[str, Any]) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers", "deepspeed", "numpy")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
        "tp_size": _TP_SIZE,
        "dtype": "float16",
        "tolerance_of_largest_logit": _TOLERANCE,
        "prompts": len(_PROMPTS_AT),
        "prompt_tokens": _PROMPT_TOKENS,
        "new_tokens": _NEW_TOKENS,
        "families": verdicts,
    }


def _print(verdicts: dict[str, Any]) -> None:
    print(f"{'family':9} {'tokens':7} {'logits':>18} {'margin':>8} {'bits as sliced':>15} {'load s':>7}")
    for family, verdict in verdicts.items():
        if "failed" in verdict:
            print(f"{family:9} failed: {', '.join(verdict['failed'])}")
            continue
        injected = verdict["injected"]
        logits = f"{injected['logits_max_abs_difference']:.4f} of {verdict['largest_logit']:.1f}"
        print(
            f"{family:9} {'equal' if injected['tokens_equal'] else 'DIFFER':7} {logits:>18} "
            f"{verdict['smallest_greedy_margin']:8.3f} "
            f"{'equal' if injected['bits_before_head_as_sliced'] else 'DIFFER':>15} {verdict['load_s']:7.1f}"
        )


def main() -> int:
    """Run all roles, or the one that a child process was started for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument(
        "--work", type=Path, help="folder for checkpoints and shards; default: a temporary one"
    )
    parser.add_argument("--families", nargs="+", choices=_FAMILIES, default=list(_FAMILIES))
    parser.add_argument(
        "--role", choices=tuple(_ROLES), help="one step of one family, as child processes do it"
    )
    args = parser.parse_args()
    if args.role:
        _ROLES[args.role](args.families[0], args.work)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        verdicts = _run(args.families, work)
    _print(verdicts)
    if args.output:
        args.output.write_text(json.dumps(_report(verdicts), indent=1) + "\n")
    return 0 if all(verdict["passed"] for verdict in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
