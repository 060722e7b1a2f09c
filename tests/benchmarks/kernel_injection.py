"""Proves kernel injection from `deepspeed` pre-shards on real GPUs: does it give the plain model's tokens?

`python tests/benchmarks/kernel_injection.py OUT.json` needs two CUDA GPUs, transformers 4.43.4 and DeepSpeed.
For each family it trains a small model, cuts it with reshard for tp 2 in float16, and generates three ways:

plain      the whole model in float16 on one GPU, transformers alone
sliced     DeepSpeed's kernels at tp 2, the whole checkpoint read and cut by DeepSpeed itself
injected   DeepSpeed's kernels at tp 2, from reshard's pre-shards through `load_kernel_injection`

`injected` must give the tokens of `plain`, logits within 1 % of the largest, and up to the head the bits of
`sliced`. (In the head itself DeepSpeed adds GPT-J's bias in a kernel of its own when it loads pre-shards, and
together with the product when it cuts a whole model; so the last bit of a logit may differ there.)
Then come settings that the kernels ignore: how far `sliced` goes astray with each is the reason why
`load_kernel_injection` refuses them. `--work FOLDER` keeps what is written, and uses what is there.
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
from kernel_injection_models import FAMILIES, IGNORED, text, train

_ROOT: Final = Path(__file__).resolve().parents[2]
_TP_SIZE: Final = 2
_TOLERANCE: Final = 0.01  # of the largest logit
_NEW_TOKENS: Final = 24
_PROMPT_TOKENS: Final = 16
_PROMPTS_AT: Final = (40, 301, 760, 1100)  # bytes into the text


def _generate(model: Any, generate: Callable[..., Any]) -> dict[str, Any]:
    """Greedy tokens, their logits at every step, the prompt's logits and the head's input, on the CPU."""
    tokens = text()
    prompts = torch.stack([tokens[at : at + _PROMPT_TOKENS] for at in _PROMPTS_AT]).to("cuda")
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


def _plain(case: str, work: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = work / case / "hf"
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float16).eval().to("cuda")
    torch.save(_generate(model, model.generate), work / case / "plain.pt")


def _sliced(case: str, work: Path) -> None:
    import deepspeed
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        work / case / "hf", torch_dtype=torch.float16, attn_implementation="eager"
    )
    engine = deepspeed.init_inference(
        model.eval(),
        tensor_parallel={"tp_size": _TP_SIZE},
        dtype=torch.float16,
        replace_with_kernel_inject=True,
        max_out_tokens=128,
    )
    _save_rank(engine, case, work, "sliced")


def _injected(case: str, work: Path) -> None:
    from reshard.loaders.kernel_injection import load_kernel_injection

    engine = load_kernel_injection(work / case / "tp2", dtype=torch.float16, max_out_tokens=128)
    _save_rank(engine, case, work, "injected")


def _save_rank(engine: Any, case: str, work: Path, role: str) -> None:
    """Generate on every rank; each writes what it got, since every one must have got the same."""
    result = _generate(engine.module, engine.generate)
    torch.save(result, work / case / f"{role}-{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


def _compare(case: str, work: Path) -> dict[str, Any]:
    """A case's verdict: tokens, logits, margins."""
    plain = torch.load(work / case / "plain.pt")
    roles = {
        role: [torch.load(work / case / f"{role}-{rank}.pt") for rank in range(_TP_SIZE)]
        for role in _roles_of(case)[-1]
        if role != "plain"
    }
    scale = float(plain["prompt"].abs().max())
    best = plain["steps"].topk(2, -1).values
    verdict: dict[str, Any] = {
        "largest_logit": scale,
        "smallest_greedy_margin": float((best[..., 0] - best[..., 1]).min()),
        "plain_continues_text": _continues_text(plain["tokens"]),
        "num_tokens_compared": plain["tokens"].numel(),
    }
    for role, ranks in roles.items():
        diff = max(_difference(rank, plain) for rank in ranks)
        verdict[role] = {
            "tokens_equal": all(torch.equal(rank["tokens"], plain["tokens"]) for rank in ranks),
            "logits_max_abs_difference": diff,
            "logits_within_tolerance": diff <= _TOLERANCE * scale,
        }
    if "injected" not in roles:
        sliced = verdict["sliced"]
        return verdict | {"passed": not (sliced["tokens_equal"] and sliced["logits_within_tolerance"])}
    injected = verdict["injected"]
    for claim, key in (("bits_before_head_as_sliced", "hidden"), ("bits_of_logits_as_sliced", "prompt")):
        pairs = zip(roles["injected"], roles["sliced"], strict=True)
        injected[claim] = all(torch.equal(one[key], other[key]) for one, other in pairs)
    claims = ("tokens_equal", "logits_within_tolerance", "bits_before_head_as_sliced")
    return verdict | {
        "passed": all(injected[claim] for claim in claims),
    }


def _difference(rank: dict[str, Any], plain: dict[str, Any]) -> float:
    """The largest between two runs' logits: of the prompt, and of steps that follow the same tokens."""
    alike = (rank["tokens"] == plain["tokens"]).cumprod(1)
    follows = torch.cat([torch.ones_like(alike[:, :1]), alike[:, :-1]], 1).bool()
    steps = (rank["steps"] - plain["steps"])[follows]
    return float(max((rank["prompt"] - plain["prompt"]).abs().max(), steps.abs().max()))


def _continues_text(tokens: torch.Tensor) -> float:
    """Share of tokens that are the text's own: that the model learned it at all."""
    known = text()
    starts = (at + _PROMPT_TOKENS for at in _PROMPTS_AT)
    wanted = torch.stack([known[start : start + _NEW_TOKENS] for start in starts])
    return float((tokens == wanted).float().mean())


def _roles_of(case: str) -> tuple[tuple[str, ...], ...]:
    """What is run for a case, in groups that can run side by side."""
    if case in IGNORED:
        return (("checkpoint",), (), ("plain", "sliced"))
    return (("checkpoint",), ("cut",), ("plain", "sliced", "injected"))


def _start(role: str, case: str, work: Path) -> subprocess.Popen[bytes]:
    """A role's processes, their output in `work`."""
    command = [sys.executable, __file__, "--role", role, "--work", str(work), "--cases", case]
    if role in ("sliced", "injected"):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(_TP_SIZE)]
        command = [sys.executable, *launcher, *command[1:]]
    environment = dict(
        os.environ, PYTHONPATH=f"{_ROOT}:{os.environ.get('PYTHONPATH', '')}", OMP_NUM_THREADS="2"
    )
    (work / case).mkdir(parents=True, exist_ok=True)
    with (work / case / f"{role}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _checkpoint(case: str, work: Path) -> None:
    if not (work / case / "hf").exists():
        print(f"{case}: trained to {train(case, work / case / 'hf'):.3f} nats per byte", flush=True)


def _cut(case: str, work: Path) -> None:
    from reshard.job import Request
    from reshard.run import reshard

    if not (work / case / "tp2").exists():
        target: dict[str, Any] = {"degrees": (_TP_SIZE,), "format": "deepspeed", "dtype": "float16"}
        reshard(Request(source=str(work / case / "hf"), output=work / case / "tp2", **target))


_ROLES: Final = {
    "checkpoint": _checkpoint,
    "cut": _cut,
    "plain": _plain,
    "sliced": _sliced,
    "injected": _injected,
}


def _run(cases: list[str], work: Path) -> dict[str, Any]:
    """Run the roles of all cases, compare."""
    failed: dict[str, list[str]] = {case: [] for case in cases}
    for group in range(3):
        running = [
            (case, role, _start(role, case, work))
            for case in cases
            if not failed[case]
            for role in _roles_of(case)[group]
        ]
        for case, role, process in running:
            if process.wait():
                failed[case].append(role)
                print(f"--- {case} {role}\n" + (work / case / f"{role}.log").read_text()[-4000:], flush=True)
    return {
        case: {"passed": False, "failed": failed[case]} if failed[case] else _compare(case, work)
        for case in cases
    }


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
        "families": {case: verdict for case, verdict in verdicts.items() if case not in IGNORED},
        "settings_ignored_by_the_kernels": {case: v for case, v in verdicts.items() if case in IGNORED},
    }


def _print(verdicts: dict[str, Any]) -> None:
    print(f"{'case':48} {'tokens':7} {'logits':>18} {'margin':>7} {'bits as sliced':>15}")
    for case, verdict in verdicts.items():
        if "failed" in verdict:
            print(f"{case:48} failed: {', '.join(verdict['failed'])}")
            continue
        shown = verdict.get("injected", verdict["sliced"])
        logits = f"{shown['logits_max_abs_difference']:.4f} of {verdict['largest_logit']:.1f}"
        line = f"{case:48} {'equal' if shown['tokens_equal'] else 'differ':7} {logits:>18} "
        line += f"{verdict['smallest_greedy_margin']:7.2f} "
        if "injected" in verdict:
            line += f"{'equal' if shown['bits_before_head_as_sliced'] else 'differ':>15}"
        print(line)


def main() -> int:
    """Run all cases, or the role of one that a child process was started for."""
    cases = (*FAMILIES, *IGNORED)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument(
        "--work", type=Path, help="folder for checkpoints and shards; default: a temporary one"
    )
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, metavar="CASE")
    parser.add_argument("--role", choices=_ROLES, help="one step of one case, as child processes do it")
    args = parser.parse_args()
    if args.role:
        _ROLES[args.role](args.cases[0], args.work)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        verdicts = _run(list(args.cases), (args.work or Path(scratch)).resolve())
    _print(verdicts)
    if args.output:
        args.output.write_text(json.dumps(_report(verdicts), indent=1) + "\n")
    return 0 if all(verdict["passed"] for verdict in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
