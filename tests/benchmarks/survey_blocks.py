"""Derived no-split blocks of every causal LM of transformers (and some others) beside the library's own list.

`python tests/benchmarks/survey_blocks.py OUT.json [--jobs N] [MODEL_TYPE...]` traces each class with its
default configuration in a process of its own and writes a row per class; `OUT.md` is the table of those
that differ or fail. No weights, no GPU.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

TIMEOUT_S: Final = 150
#: What a default configuration leaves unset, or sets to what its own model refuses.
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": [2] * 32},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "dots1": {
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "moe_intermediate_size": 512,
        "num_experts_per_tok": 2,
    },
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "granitemoehybrid": {"layer_types": (["mamba"] * 9 + ["attention"]) * 3 + ["mamba"] * 2},
    "blenderbot": {"encoder_layers": 24},
    "lfm2_moe": {"layer_types": (["conv", "conv", "full_attention"] * 11)[:32]},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
    "deepseek_v2": {
        "num_experts_per_tok": 6,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
    },
}
SEQ2SEQ: Final = (
    "t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "m2m_100", "led", "blenderbot-small",
    "bigbird_pegasus", "prophetnet", "nllb-moe", "switch_transformers", "longt5",
)  # fmt: skip
ENCODERS: Final = (
    "bert", "roberta", "albert", "distilbert", "electra", "deberta-v2", "xlm-roberta", "modernbert", "mpnet",
    "camembert", "megatron-bert", "rembert", "esm", "luke",
)  # fmt: skip


def one(kind: str, model_type: str) -> dict[str, Any]:
    """Trace one class; the row of the table."""
    import torch
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from planner.tracing.meta_model import build
    from planner.tracing.placement import trace_placement

    names = {
        "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }[kind]
    named = names[model_type]
    class_name = named if isinstance(named, str) else named[0]
    model_class = getattr(transformers, class_name)
    config = CONFIG_MAPPING[model_type](**SETTINGS.get(model_type, {}))
    wanted = model_class.config_class
    if wanted is not None and not isinstance(config, wanted):
        config = config.get_text_config()
    row: dict[str, Any] = {"kind": kind, "model_type": model_type, "class": class_name}
    placement = trace_placement(config, model_class, prompt=4 if model_type == "jetmoe" else 16)
    derived = sorted(set(placement.block_classes))
    listed = sorted(outermost(build(config, model_class, torch.bfloat16), set(placement.library_no_split)))
    return {
        **row,
        "derived": derived,
        "listed": listed,
        "equal": derived == listed,
        "lists_something": bool(listed),
        "co_located": len(placement.co_located),
        "leaks": list(placement.leaks),
        "uncalled_use": len(placement.uncalled_use),
    }


def outermost(model: Any, classes: set[str]) -> set[str]:
    """Those of `classes` that occur somewhere outside another of them: a map never gets to the rest."""
    names = {name: type(module).__name__ for name, module in model.named_modules()}
    found = set()
    for name, class_name in names.items():
        parts = name.split(".")
        above = (names[".".join(parts[:depth])] for depth in range(1, len(parts)))
        if class_name in classes and not any(one in classes for one in above):
            found.add(class_name)
    return found


def in_child(kind: str, model_type: str) -> dict[str, Any]:
    """The row from a process of its own, or why there is none."""
    row = {"kind": kind, "model_type": model_type}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", kind, model_type],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {**row, "error": f"took more than {TIMEOUT_S} s"}
    seconds = round(time.perf_counter() - start, 1)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {**row, "error": (lines or ["no output"])[-1][:300], "seconds": seconds}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "seconds": seconds}


def reason(row: dict[str, Any]) -> str:
    """Why a derived list is not the library's, as far as the two lists say it."""
    extra, missing = set(row["derived"]) - set(row["listed"]), set(row["listed"]) - set(row["derived"])
    if not row["listed"]:
        return "the library lists nothing; a block is needed because its own operations mix its parts"
    if extra and not missing:
        return "these mix as well, and the library leaves them out"
    if missing and not extra:
        return "inside a derived block, or no operation of its own mixes its parts"
    return "another level of the same stack"


def markdown(result: dict[str, Any]) -> str:
    """Totals, then every class that differs or fails."""
    lines = ["# Derived no-split blocks beside `_no_split_modules`", ""]
    versions = f"transformers {result['transformers']}, torch {result['torch']}"
    lines.append(f"{result['date']}, {versions}, default configurations, no weights.")
    lines.append("Made by `tests/benchmarks/survey_blocks.py`. Equal: the same classes, when those are left")
    lines += ["out that the library lists although they are always inside another of its own blocks.", ""]
    lines.append("| kind | classes | traced | library lists something | equal |")
    lines.append("| --- | --- | --- | --- | --- |")
    for kind, total in result["totals"].items():
        lines.append(
            f"| {kind} | {total['classes']} | {total['traced']} | {total['listed']} | {total['equal']} |"
        )
    lines += ["", "| model type | derived | listed | reason |", "| --- | --- | --- | --- |"]
    for row in result["rows"]:
        if "error" in row:
            lines.append(f"| {row['model_type']} ({row['kind']}) | not traced | | {row['error']} |")
        elif not row["equal"]:
            cells = [", ".join(row[key]) or "nothing" for key in ("derived", "listed")]
            lines.append(f"| {row['model_type']} ({row['kind']}) | {cells[0]} | {cells[1]} | {reason(row)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Survey everything, or the model types named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("model_types", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "MODEL_TYPE"))
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one)))
        return
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    cases = [("causal", name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    cases += [("seq2seq", name) for name in SEQ2SEQ] + [("masked", name) for name in ENCODERS]
    if args.model_types:
        cases = [case for case in cases if case[1] in args.model_types]
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda case: in_child(*case), cases))
    totals = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        traced = [row for row in of_kind if "error" not in row]
        listed = [row for row in traced if row["lists_something"]]
        totals[kind] = {
            "classes": len(of_kind),
            "traced": len(traced),
            "listed": len(listed),
            "equal": sum(row["equal"] for row in listed),
        }
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "totals": totals,
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(result))
    print(json.dumps(totals, indent=1))


if __name__ == "__main__":
    main()
