"""Derived tensor-parallel roles of every language model of transformers, beside what others list.

`python tests/benchmarks/roles.py OUT.json [--jobs N] [MODEL_TYPE...]` derives the roles of each class with
its default configuration, without weights, in a process of its own, and compares them weight by weight with
the library's `tp_plan` and with the row-parallel Linears that DeepSpeed's AutoTP finds. `OUT.md` is the
table of all that differ or fail, each with its reason. With model types, only their rows are made again.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from roles_table import markdown, totals_of
from survey_blocks import SETTINGS

TIMEOUT_S: Final = 240
_DEFAULT_ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0}
#: What those settings leave out: default configurations of these cannot be built, or not in 16 bits.
MORE_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _DEFAULT_ROPE, "sliding_attention": _DEFAULT_ROPE}
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 128,
        "indexer_budget": 2048,
        "indexer_compress_ratio": 16,
    },
}
IN_32_BITS: Final = ("xlnet",)
#: Styles of a `tp_plan` → the role that they mean.
STYLES: Final = {
    "colwise": "column",
    "packed_colwise": "column",
    "local_colwise": "column",
    "local_packed_colwise": "column",
    "rowwise": "row",
    "packed_rowwise": "row",
    "local_rowwise": "row",
    "rowwise_split_input": "row",
    "grouped_gemm": "by expert",
    "ep_router": "by expert",
    "moe_tp_experts": "by expert",
    "colwise_gather_output": "vocabulary",
    "colwise_rep": "vocabulary",
    "embedding_rowwise": "vocabulary",
    "embedding_colwise": "vocabulary",
}


def one(kind: str, model_type: str) -> dict[str, Any]:
    """Derive the roles of one class; its row of the table."""
    import torch

    from planner.tracing.meta_model import build
    from planner.tracing.partition.derive import derive

    config, model_class = built_from(kind, model_type)
    dtype = torch.float32 if model_type in IN_32_BITS else torch.bfloat16
    model = build(config, model_class, dtype)
    start = time.perf_counter()
    roles = derive(model, prompt=4 if model_type == "jetmoe" else 3)
    found = {}
    for name, role in roles.parameters.items():
        found.setdefault(kind_of(name), role.role)
    return {
        "class": model_class.__name__,
        "derive_s": round(time.perf_counter() - start, 2),
        "num_row": sum(role == "row" for role in found.values()),
        "num_column": sum(role == "column" for role in found.values()),
        "replicated": sorted(set(map(kind_of, roles.replicated))),
        "constants": sorted(set(map(kind_of, roles.constants))),
        "unknown": sorted(roles.unknown),
        "plan": beside_plan(model, found),
        "autotp": beside_autotp(model, found),
    }


def kind_of(name: str) -> str:
    """A weight's name without its layer's number; the numbers inside a layer tell its parts apart."""
    parts = name.removesuffix(".weight").split(".")
    first = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join("*" if place == first else part for place, part in enumerate(parts))


def built_from(kind: str, model_type: str) -> tuple[Any, type]:
    """A default configuration, and the class that takes it."""
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    names = {
        "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }[kind]
    named = names[model_type]
    model_class = getattr(transformers, named if isinstance(named, str) else named[0])
    config = CONFIG_MAPPING[model_type](**(SETTINGS | MORE_SETTINGS).get(model_type, {}))
    if model_class.config_class is not None and not isinstance(config, model_class.config_class):
        config = config.get_text_config()
    return config, model_class


def beside_plan(model: Any, found: dict[str, str]) -> dict[str, Any]:
    """Weights on which the plan and the derivation agree, and those on which they do not."""
    from planner.tensor_parallel.patterns import pattern_of

    plan = dict(getattr(model, "tp_plan", None) or {})
    weights = dict.fromkeys(kind_of(name) for name, p in model.named_parameters() if p.dim() > 1)
    result: dict[str, Any] = {"listed": len(plan), "agree": 0, "vocabulary": 0, "ours": [], "differ": []}
    for name in weights:
        listed_as = pattern_of(name)
        style = plan.get(listed_as, plan.get(f"{listed_as}.weight"))
        wanted = STYLES.get(style, "whole") if style else None
        ours = found.get(name, "whole")
        ours = "whole" if ours == "elementwise" else ours
        if wanted == "vocabulary":
            result["vocabulary"] += 1
        elif wanted is None:
            if plan and ours != "whole":
                result["ours"].append([name, ours])
        elif wanted == ours:
            result["agree"] += 1
        else:
            result["differ"].append([name, style, ours])
    return result


def beside_autotp(model: Any, found: dict[str, str]) -> dict[str, Any]:
    """Row-parallel Linears by DeepSpeed's rules and by derivation, inside the blocks that it replaces."""
    from deepspeed.module_inject.auto_tp import AutoTP
    from torch import nn

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            policy = AutoTP.tp_parser(model)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    ours: set[str] = set()
    theirs: set[str] = set()
    for block_name, block in model.named_modules():
        names = next((set(gems) for kind, gems in policy if type(block) is kind), None)
        if names is None:
            continue
        for name, module in block.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            *_, holder, own = ["", *name.split(".")]
            whole = kind_of(f"{block_name}.{name}")
            if f"{holder}.{own}" in names or "down_proj" in own:
                theirs.add(whole)
            if found.get(whole) == "row":
                ours.add(whole)
    return {"agree": len(ours & theirs), "ours": sorted(ours - theirs), "theirs": sorted(theirs - ours)}


def in_child(kind: str, model_type: str) -> dict[str, Any]:
    """The row from a process of its own, or why there is none."""
    start = time.perf_counter()
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(writer, kind, model_type))
    child.start()
    writer.close()
    try:
        found = reader.recv() if reader.poll(TIMEOUT_S) else {"error": f"took more than {TIMEOUT_S} s"}
    except EOFError:
        found = {"error": "the process ended without a word"}
    child.kill()
    child.join()
    print(model_type, found.get("error", "ok")[:150], flush=True)
    return {
        "kind": kind,
        "model_type": model_type,
        **found,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _send(writer: Any, kind: str, model_type: str) -> None:
    try:
        writer.send(one(kind, model_type))
    except Exception as error:
        writer.send({"error": f"{type(error).__name__}: {error}"[:300]})


def main() -> None:
    """Compare everything, or the model types named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("model_types", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="Only write the table of OUT.json again.")
    args = parser.parse_args()
    if args.again:
        args.out.with_suffix(".md").write_text(markdown(json.loads(args.out.read_text())))
        return
    import deepspeed
    import torch
    import transformers
    from transformers.models.auto import modeling_auto

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    cases = [("causal", name) for name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    cases += [("seq2seq", name) for name in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES]
    if args.model_types:
        cases = [case for case in cases if case[1] in args.model_types]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if args.model_types and args.out.exists():
        old = json.loads(args.out.read_text())["rows"]
        rows = {(row["kind"], row["model_type"]): row for row in old}
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda case: in_child(*case), cases):
            rows[row["kind"], row["model_type"]] = row
            made = [rows[case] for case in sorted(rows)]
            write(args.out, made, deepspeed=deepspeed, torch=torch, transformers=transformers)


def write(out: Path, rows: list[dict[str, Any]], **libraries: Any) -> None:
    """The rows so far, and their table."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        **{name: library.__version__.partition("+")[0] for name, library in libraries.items()},
        "totals": {kind: totals_of([row for row in rows if row["kind"] == kind]) for kind in kinds},
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
