"""The table that `roles.py` writes."""

from typing import Any, Final

from roles_reasons import INCOMPLETE, reason_for


def totals_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over the rows of one kind."""
    done = [row for row in rows if "error" not in row]
    judged = [row for row in done if "error" not in row["autotp"]]
    return {
        "classes": len(rows),
        "traced": len(done),
        "derived": sum(row["num_row"] > 0 for row in done),
        "with_plan": sum(row["plan"]["listed"] > 0 for row in done),
        "plan_agree": sum(row["plan"]["agree"] for row in done),
        "plan_differ": sum(len(row["plan"]["differ"]) for row in done),
        "plan_silent": sum(len(row["plan"]["ours"]) for row in done),
        "autotp_runs": len(judged),
        "autotp_equal": sum(not row["autotp"]["ours"] and not row["autotp"]["theirs"] for row in judged),
    }


def markdown(result: dict[str, Any]) -> str:
    """Totals, then everything that differs or fails, with its reason."""
    lines = ["# Derived tensor-parallel roles beside `tp_plan` and AutoTP", ""]
    versions = ", ".join(f"{name} {result[name]}" for name in ("transformers", "torch", "deepspeed"))
    lines.append(f"{result['date']}, {versions}, default configurations, no weights.")
    lines += [
        "Made by `tests/benchmarks/roles.py`. A weight is a parameter with its layer's number left out;",
        "",
    ]
    lines[-1] = "embeddings and output heads that the plan cuts along the vocabulary are not derived."
    lines += ["", "| | " + " | ".join(result["totals"]) + " |"]
    lines.append("| --- |" + " --- |" * len(result["totals"]))
    for key, label in _LABELS.items():
        lines.append(f"| {label} | " + " | ".join(str(t[key]) for t in result["totals"].values()) + " |")
    lines += ["", "## Not traced, or nothing derived", "", "| model | what happened |", "| --- | --- |"]
    for row in result["rows"]:
        if "error" in row:
            lines.append(f"| {row['model_type']} ({row['kind']}) | {_cell(row['error'])} |")
        elif not row["num_row"]:
            lines.append(
                f"| {row['model_type']} ({row['kind']}) | {reason_for(row, 'nothing', row['model_type'])} |"
            )
    lines += ["", "## Derived in part", "", "| model | what is missing |", "| --- | --- |"]
    here = {row["model_type"] for row in result["rows"]}
    lines += [f"| {name} | {why} |" for name, why in INCOMPLETE.items() if name in here]
    lines += [
        "",
        "## Beside `tp_plan`",
        "",
        "| model | weight | plan | derived | reason |",
        "| --- |" * 1 + " --- |" * 4,
    ]
    lines += _plan_lines(result["rows"])
    lines += [
        "",
        "## Beside AutoTP",
        "",
        "| model | only derived | only AutoTP | reason |",
        "| --- | --- | --- | --- |",
    ]
    lines += _autotp_lines(result["rows"])
    return "\n".join(lines) + "\n"


_LABELS: Final = {
    "classes": "classes",
    "traced": "traced",
    "derived": "with at least one row-parallel weight",
    "with_plan": "with a `tp_plan`",
    "plan_agree": "weights on which plan and derivation agree",
    "plan_differ": "weights on which they differ (below)",
    "plan_silent": "weights that are cut and that the plan does not list",
    "autotp_runs": "classes whose AutoTP parser runs",
    "autotp_equal": "of these, equal sets of row-parallel Linears",
}


def _plan_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        for name, style, ours in row.get("plan", {}).get("differ", []):
            why = reason_for(row, "plan", name)
            lines.append(f"| {row['model_type']} ({row['kind']}) | {name} | {style} | {ours} | {why} |")
    return lines


def _autotp_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        found = row.get("autotp", {})
        label = f"{row['model_type']} ({row['kind']})"
        if "error" in found:
            lines.append(f"| {label} | | | the parser raises: {_cell(found['error'])} |")
        elif found and (found["ours"] or found["theirs"]):
            ours, theirs = ("<br>".join(found[key]) for key in ("ours", "theirs"))
            lines.append(f"| {label} | {ours} | {theirs} | {reason_for(row, 'autotp', '')} |")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]
