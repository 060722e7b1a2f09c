"""Every causal LM of transformers cut in two by derived roles, both halves run in processes of their own.

`python -m tests.benchmarks.reshard_roles OUT.md [--only MODEL_TYPE...]` builds a tiny model of each type,
derives its roles, cuts its checkpoint with `reshard --roles` at two ranks, runs the halves over gloo and
compares logits and greedy tokens with the whole model's. Each type gets a row, whatever became of it.
"""

import argparse
import contextlib
import io
import shutil
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fixtures.families import FAMILIES
from reshard.architectures import for_model_type
from tests.integration.reshard_roles.proof import Plain, compare, prepare, run_halves
from tests.integration.reshard_roles.test_physical import CASES

TOLERANCE: Final = 2e-5
_BATCH: Final = 12
_TIMEOUT_S: Final = 240
_PREPARE_S: Final = 40
#: Known reasons why halves do not run, or not as the whole.
_SINKS: Final = "attention's sinks, a parameter of one number per head, have no role"
_FIXED: Final = "linear attention splits by extents that it was built with, which the loader here leaves"
_PARTLY: Final = (
    "linear attention is cut in part; its forward views whole heads, so activations must be sliced"
)
_COMPLEX: Final = (
    "rotation of complex numbers: most rows of the queries have no group, so heads have no one width"
)
_WHY: Final = {
    "bailing_hybrid": _FIXED,
    "big_bird": "attention reshapes by an extent that the loader here does not change",
    "deepseek_v2": _COMPLEX,
    "gpt_oss": _SINKS,
    "hy_v4": _SINKS,
    "llama4_text": _COMPLEX,
    "longcat_flash": "experts that pass their input on are added before the sum, once on every rank",
    "mimo_v2_flash": _SINKS,
    "minimax": _PARTLY,
    "olmo_hybrid": _PARTLY,
    "qwen3_5_moe_text": _PARTLY,
    "qwen3_5_text": _PARTLY,
    "qwen3_next": _PARTLY,
    "trocr": "attention reshapes by an extent that the loader here does not change",
}


class Row(NamedTuple):
    """What became of one architecture."""

    name: str
    outcome: str
    rows: int = 0
    weights: int = 0
    sharded: float = 0.0
    error: float | None = None
    says: str = ""


def prepared(name: str, work: Path) -> Plain | Row:
    """The model, its roles and its shards; or why there are none."""
    try:
        signal.alarm(_PREPARE_S)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return prepare(name, work, CASES.get(name))
    except Exception as error:
        stages = {"hf/config.json": "not built", "roles.json": "no roles", "halves": "not cut"}
        reached = (stage for file, stage in stages.items() if not (work / name / file).exists())
        return Row(name, next(reached, "whole not run"), says=_sentence(error))
    finally:
        signal.alarm(0)


def halves(several: list[Plain], work: Path) -> list[Row]:
    """Run a batch; what fails in company is run again alone."""
    folder = Path(tempfile.mkdtemp(dir=work))
    try:
        answers = run_halves([one.job for one in several], folder, _TIMEOUT_S)
    except Exception as error:
        if len(several) == 1:
            return [_row(several[0], "not run", says=_sentence(error))]
        return [row for one in several for row in halves([one], work)]
    rows = [_judged(one, answers[one.name]) for one in several]
    if len(several) == 1:
        return rows
    return [
        row if row.outcome == "equal" else halves([one], work)[0]
        for one, row in zip(several, rows, strict=True)
    ]


def _judged(plain: Plain, answers: list[dict[str, object]]) -> Row:
    try:
        found = compare(plain, answers)
    except RuntimeError as error:
        return _row(plain, "not run", says=_sentence(error))
    is_equal = found.error <= TOLERANCE and found.tokens_equal
    return _row(plain, "equal" if is_equal else "differs", error=found.error)


def _row(plain: Plain, outcome: str, *, error: float | None = None, says: str = "") -> Row:
    found = plain.roles
    return Row(plain.name, outcome, len(found.rows), len(found.cut), plain.sharded, error, says)


def _sentence(error: Exception) -> str:
    says = str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"
    first = next(iter(says.splitlines()), type(error).__name__)
    return first.replace("|", "/").replace(tempfile.gettempdir(), "…")[:160]


def table(rows: list[Row]) -> str:
    """The whole file."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.outcome] = counts.get(row.outcome, 0) + 1
    about = (
        f"transformers {transformers.__version__}, torch {torch.__version__}, CPU, float32, two processes "
        "over gloo. Roles derived from a trace, cut with `reshard --roles`; logits of two prompts of nine "
        "tokens, and eight greedy tokens each. *equal*: the largest difference is at most "
        f"{TOLERANCE:g} of the largest logit, and every token is the same."
    )
    listed = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    lines = [
        "# Two halves of every causal language model",
        "",
        about,
        "",
        f"{len(rows)} architectures and variants: {listed}.",
        "",
        "| architecture | table | outcome | row-parallel | cut | share cut | difference | |",
        "| --- | --- | --- | --: | --: | --: | --: | --- |",
    ]
    for row in rows:
        kind = FAMILIES[row.name].model_type if row.name in FAMILIES else row.name
        tabled = "yes" if for_model_type(kind) else "no"
        error = "" if row.error is None else f"{row.error:.1e}"
        counted = f"{row.rows} | {row.weights} | {row.sharded:.0%}" if row.weights else " | | "
        why = _WHY.get(row.name, row.says) if row.outcome != "equal" else ""
        lines.append(f"| {row.name} | {tabled} | {row.outcome} | {counted} | {error} | {why} |")
    return "\n".join(lines) + "\n"


def _too_long(_number: int, _frame: object) -> NoReturn:
    raise TimeoutError(f"not done after {_PREPARE_S} s")


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--jobs", type=int, default=1, help="pairs of processes at a time")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_long)
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    known = {family.model_type for family in FAMILIES.values()}
    others = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in known]
    encoders = [name for name, family in FAMILIES.items() if family.auto_class == "AutoModelForMaskedLM"]
    names = arguments.only or sorted({*FAMILIES, *others} - set(encoders))
    work = Path(tempfile.mkdtemp(prefix="halves-"))
    try:
        rows: list[Row] = []
        ready: list[Plain] = []
        for name in names:
            found = prepared(name, work)
            print(name, found.outcome if isinstance(found, Row) else "cut", flush=True)
            if isinstance(found, Row):
                rows.append(found)
            else:
                ready.append(found)
        batches = [ready[i : i + _BATCH] for i in range(0, len(ready), _BATCH)]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for batch in pool.map(lambda several: halves(several, work), batches):
                rows += batch
                print(*(f"{row.name} {row.outcome}" for row in batch), sep="\n", flush=True)
        arguments.out.write_text(table(sorted(rows)))
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
