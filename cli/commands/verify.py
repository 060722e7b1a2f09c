"""`planner verify`: verifies a written plan by generation."""

from pathlib import Path
from typing import Literal

import click

import planner
from planner.errors import VerificationError
from planner.schema.plan import Prediction, read
from planner.sizes import format_bytes, format_seconds
from planner.verification.compare import Comparison
from planner.verification.run import VerifyReport

from ..options import output_options
from ..render import Column, show_json, show_table, show_text


@click.command(name="verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), required=True, help="Folder with the model's checkpoint."
)
@click.option(
    "--on",
    type=click.Choice(["cpu"]),
    help="Run without a GPU: weights planned for a GPU stay in host memory, and weights planned for host "
    "memory are read from disk.",
)
@click.option(
    "--new-tokens", type=click.IntRange(min=1), help="Number of tokens to generate.  [default: the plan's]"
)
@click.option("--batch", "batch_size", type=click.IntRange(min=1), help="Batch size.  [default: the plan's]")
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    help="Per-rank shards that `reshard` wrote for the plan's ranks; generate.py loads them instead of the "
    "checkpoint.",
)
@click.option("--timeout", "timeout_s", type=float, help="Time limit of each run, in seconds.")
@output_options
def command(
    folder: Path,
    checkpoint: Path,
    on: Literal["cpu"] | None,
    new_tokens: int | None,
    batch_size: int | None,
    shards: Path | None,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Run a written plan, and compare its tokens and logits with those of the unmodified model.

    Three runs are compared: the unmodified model, the folder's generate.py with one process per rank, and,
    for runtimes that use one, device_map.json alone. The exit status is 1 when tokens or logits differ.
    """
    report = planner.verify(
        folder,
        checkpoint,
        on=on,
        new_tokens=new_tokens,
        batch_size=batch_size,
        shards=shards,
        timeout_s=timeout_s,
    )
    if as_json:
        show_json(report)
    else:
        _show(report, folder)
    if not report.passed:
        by_map = report.map_alone.first_difference if report.map_alone is not None else ""
        words = report.script.first_difference or by_map or "logits differ"
        raise VerificationError(f"the plan's output differs from that of the plain model: {words}")


def _show(report: VerifyReport, folder: Path) -> None:
    ranks = f" over {report.num_ranks} ranks" if report.num_ranks > 1 else ""
    show_text(
        f"{report.batch_size} × {report.new_tokens} tokens in {report.dtype}, {report.on}{ranks}: "
        f"{report.num_resident} modules resident, {report.num_streamed} streamed"
    )
    runs = [_compared("generate.py", report.script)]
    if report.map_alone is not None:
        runs.append(_compared("device_map.json alone", report.map_alone))
    show_table(
        (
            Column("run"),
            Column("tokens"),
            Column("logit error", is_number=True),
            Column("allowed", is_number=True),
        ),
        runs,
    )
    prediction = read(folder).prediction
    plain, plan = report.plain, report.plan
    host = max((part.total for part in prediction.memory.get("cpu", {}).values()), default=0)
    show_table(
        (
            Column("measured"),
            Column("plain", is_number=True),
            Column("plan", is_number=True),
            Column("predicted", is_number=True),
        ),
        [
            (
                "load",
                format_seconds(plain.load_s),
                format_seconds(plan.load_s),
                format_seconds(prediction.load_s),
            ),
            (
                "prefill",
                format_seconds(plain.prefill_s),
                format_seconds(plan.prefill_s),
                format_seconds(prediction.time["prefill"].total),
            ),
            (
                "step",
                format_seconds(plain.decode_s),
                format_seconds(plan.decode_s),
                format_seconds(prediction.time["decode"].total),
            ),
            (
                "host memory",
                format_bytes(plain.host_peak_bytes),
                format_bytes(plan.host_peak_bytes),
                format_bytes(host),
            ),
            *(
                (f"gpu:{index} reserved", "", format_bytes(peak), format_bytes(_gpu(prediction, index)))
                for index, peak in enumerate(plan.gpu_peak_bytes)
            ),
        ],
    )
    show_text(report.comparable, "verified" if report.passed else "NOT verified")


def _gpu(prediction: Prediction, index: int) -> int:
    memory = prediction.memory.get(f"gpu:{index}", {})
    return max((part.total - part.context for part in memory.values()), default=0)


def _compared(name: str, one: Comparison) -> tuple[str, ...]:
    verdict = f"{one.num_tokens} equal" if one.tokens_equal else one.first_difference
    if one.near_ties:
        verdict += f", {one.near_ties} near-ties"
    return (name, verdict, f"{one.logit_error:.1e}", f"{one.tolerance:.0e}")
