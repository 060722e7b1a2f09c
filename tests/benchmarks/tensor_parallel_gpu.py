"""Tensor-parallel plans run from their emitted folders on two GPUs: the plain model's tokens, and the time.

`python tensor_parallel_gpu.py plan FOLDER [--hardware 2xh200]` writes the plans, without a GPU.
`python tensor_parallel_gpu.py run FOLDER OUT.json` runs them; it needs two CUDA GPUs, torch, transformers,
accelerate, deepspeed, safetensors and msgspec, and about 30 GB of disk. Plans run as users run them: the
planner is not imported then.

tokens   the trained GPT-J of the fixtures (float16) and a tiny Llama (float32), each from its checkpoint and
         from what `reshard` wrote: the tokens must be those of transformers alone.
time     OPT-6.7B under DeepSpeed and Llama-2-7B under transformers, random weights: predicted beside
         measured, and the time to load a checkpoint beside that to load pre-shards.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from emitted_folders import child, generate, total_s

_ROOT: Final = Path(__file__).resolve().parents[2]
_NUM_RANKS: Final = 2
_FORMATS: Final = {"deepspeed-tp": "safetensors", "transformers-tp": "transformers"}
_LARGE: Final = {"deepspeed-tp": "opt-6.7b", "transformers-tp": "llama-2-7b"}
_LARGE_SIZES: Final = {"batch_size": 8, "prompt_tokens": 512, "new_tokens": 32}
_PROMPTS_AT: Final = (40, 301)  # characters into the licence, each of which is a token
_SMALL_SIZES: Final = {"batch_size": 2, "prompt_tokens": 16, "new_tokens": 24}


class Small(NamedTuple):
    """A model whose tokens are compared.

    Attributes:
        name: of its folders.
        runtime: that runs it.
        dtype: of everything.
    """

    name: str
    runtime: str
    dtype: str


_SMALL: Final = (
    Small("gptj", "deepspeed-tp", "float16"),
    Small("llama", "deepspeed-tp", "float32"),
    Small("llama", "transformers-tp", "float32"),
)


def plan(folder: Path, hardware: str) -> None:
    """Write every plan's folder, and the small models."""
    sys.path.insert(0, str(_ROOT))
    from fixtures.plans import plan_with
    from fixtures.train import TRAINED
    from planner.emission import emit
    from planner.hardware.load import load
    from planner.runtimes.registry import RUNTIME_MODELS
    from planner.schema.workload import Workload
    from tests.integration.tensor_parallel_cases import save

    save("llama", folder / "llama")
    (folder / "gptj").mkdir()
    for file in TRAINED.iterdir():
        (folder / "gptj" / file.name).write_bytes(file.read_bytes())
    profile = load(hardware)

    def write(name: str, source: str, runtime: str, workload: Workload) -> None:
        runtime_model = RUNTIME_MODELS[runtime]
        way = next(one for one in runtime_model.configurations(profile) if one.num_ranks == _NUM_RANKS)
        made, graph = plan_with(source, profile, runtime_model, way, workload)
        emit(made, graph, folder / name)

    for one in _SMALL:
        sizes = Workload(**_SMALL_SIZES, dtype=one.dtype)
        write(f"{one.name}-{one.runtime}", str(folder / one.name), one.runtime, sizes)
    for runtime, model in _LARGE.items():
        write(f"{model}-{runtime}", model, runtime, Workload(**_LARGE_SIZES, dtype="float16"))
        source = _ROOT / "planner" / "models" / "shipped" / f"{model}.json"
        (folder / f"{model}.json").write_bytes(source.read_bytes())


def cut(source: Path, target: Path, runtime: str) -> float:
    """Pre-shards for a runtime; seconds that they took."""
    sys.path.insert(0, str(_ROOT))
    from reshard.job import Request
    from reshard.run import reshard

    start = time.perf_counter()
    reshard(
        Request(source=str(source), output=target, degrees=(_NUM_RANKS,), format=_FORMATS[runtime], jobs=8)
    )
    return time.perf_counter() - start


def plain(folder: Path, dtype: str, out: Path) -> None:
    """Transformers alone, on one GPU: input ids and tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to("cuda")
    text, length = (_ROOT / "LICENSE").read_text(), _SMALL_SIZES["prompt_tokens"]
    rows = AutoTokenizer.from_pretrained(folder)([text[at : at + length] for at in _PROMPTS_AT])["input_ids"]
    given = torch.tensor(rows, device="cuda")
    tokens = model.generate(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=_SMALL_SIZES["new_tokens"],
    )
    new = tokens[:, given.shape[1] :].tolist()
    out.write_text(json.dumps({"input_ids": rows, "tokens": new}))


def tokens(plans: Path, work: Path) -> dict[str, bool]:
    """Whether every small plan generates the plain model's tokens."""
    with ThreadPoolExecutor(len(_SMALL)) as pool:
        verdicts = pool.map(lambda one: _tokens_of(one, plans, work / f"{one.name}-{one.runtime}"), _SMALL)
        return {name: is_equal for found in verdicts for name, is_equal in found.items()}


def _tokens_of(one: Small, plans: Path, work: Path) -> dict[str, bool]:
    work.mkdir()
    known, ids, shards = work / "plain.json", work / "input_ids.json", work / "shards"
    child([__file__, "plain", str(plans / one.name), str(known), "--dtype", one.dtype])
    expected = json.loads(known.read_text())
    ids.write_text(json.dumps(expected["input_ids"]))
    cut(plans / one.name, shards, one.runtime)
    found = {}
    for kind, checkpoint in (("checkpoint", plans / one.name), ("pre-shards", shards)):
        report = generate(plans / work.name, checkpoint, work, ["--input-ids", str(ids)])
        found[f"{work.name}, {kind}"] = report["tokens"] == expected["tokens"]
    return found


def random_weights(config_file: Path, folder: Path) -> None:
    """A checkpoint of a shipped model's shape."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = json.loads(config_file.read_text())
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model = model.to_empty(device="cuda")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size="4GB")


def timing(plans: Path, work: Path, runtime: str) -> dict[str, Any]:
    """A large model's plan: predicted beside measured."""
    model = _LARGE[runtime]
    name, checkpoint, shards = f"{model}-{runtime}", work / model, work / f"{model}-shards"
    child([__file__, "random", str(plans / f"{model}.json"), str(checkpoint)])
    cut_s = cut(checkpoint, shards, runtime)
    sizes = ["--prompt-tokens", str(_LARGE_SIZES["prompt_tokens"]), "--ignore-eos", "--repeat", "3"]
    report = generate(plans / name, shards, work, sizes)
    whole = generate(plans / name, checkpoint, work, ["--prompt-tokens", "8", "--new-tokens", "2"])
    prediction = json.loads((plans / name / "plan.json").read_text())["prediction"]
    memory = prediction["memory"]["gpu:0"].values()
    # What torch's allocator reserves; the context is beside it.
    parts = ("weights", "kv", "activations", "staging", "slack")
    return {
        "model": model,
        **_LARGE_SIZES,
        "predicted": {
            "prefill_s": total_s(prediction["time"]["prefill"]),
            "step_s": total_s(prediction["time"]["decode"]),
            "load_s": prediction["load_s"],
            "gpu_bytes": max(sum(phase[part] for part in parts) for phase in memory),
        },
        "measured": {
            "prefill_s": report["prefill_s"],
            "step_s": statistics.median(report["decode_s"]),
            "load_s": report["load_s"],
            "gpu_bytes": max(report["gpu_peak_reserved_bytes"]),
            "gpu_allocated_bytes": max(report["gpu_peak_allocated_bytes"]),
        },
        "load_of_uncut_checkpoint_s": whole["load_s"],
        "resharding_s": cut_s,
    }


def run(plans: Path, output: Path) -> int:
    """Run all plans, print, write; the exit status says whether all tokens are equal."""
    import torch

    packages = ("torch", "transformers", "accelerate", "deepspeed")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        result: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "device": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "versions": {name: version(name) for name in packages},
            "tokens_equal": tokens(plans, work),
            "time": {},
        }
        for runtime in _LARGE:
            # Written after each, so that a run that is cut short leaves what it measured.
            output.write_text(json.dumps(result, indent=1) + "\n")
            result["time"][runtime] = timing(plans, work, runtime)
    output.write_text(json.dumps(result, indent=1) + "\n")
    for name, is_equal in result["tokens_equal"].items():
        print(f"{name:32} tokens {'equal' if is_equal else 'DIFFER'}")
    for runtime, one in result["time"].items():
        for key, predicted in one["predicted"].items():
            measured = one["measured"][key]
            ratio = f"ratio {predicted / measured:.2f}"
            print(f"{runtime:16} {key:10} predicted {predicted:.4g}, measured {measured:.4g}, {ratio}")
    return 0 if all(result["tokens_equal"].values()) else 1


def main() -> int:
    """The command line; `plain` and `random` are what child processes do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("action", choices=("plan", "run", "plain", "random"))
    parser.add_argument("folder", type=Path, help="of the plans")
    parser.add_argument("output", type=Path, nargs="?", help="what to write; with `run` a JSON file")
    parser.add_argument("--hardware", default="2xh200", help="with `plan`")
    parser.add_argument("--dtype", default="float16", help="with `plain`")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    if args.action == "plan":
        plan(args.folder, args.hardware)
    elif args.output is None:
        parser.error(f"{args.action} needs the name of what to write")
    elif args.action == "run":
        return run(args.folder.resolve(), args.output)
    elif args.action == "plain":
        plain(args.folder, args.dtype, args.output)
    else:
        random_weights(args.folder, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
