"""`planner verify`: prove a written plan by really generating."""

from pathlib import Path

import click

from planner.errors import VerificationError
from planner.schema.plan import Prediction, read
from planner.sizes import format_bytes, format_seconds
from planner.verify.compare import Comparison
from planner.verify.run import VerifyReport, verify

from ..options import output_options
from ..render import Column, show_json, show_table, show_text


@click.command(name="verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), required=True, help="Folder with the model's weights."
)
@click.option(
    "--on", type=click.Choice(["cpu"]), help="Map the tiers one step down: GPU to CPU, streamed to disk."
)
@click.option("--new-tokens", type=click.IntRange(min=1), help="Tokens to generate; the plan's by default.")
@click.option("--batch", "batch_size", type=click.IntRange(min=1), help="Sequences; the plan's by default.")
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    help="What `reshard` cut from the checkpoint for the plan's ranks; generate.py loads it instead.",
)
@click.option("--timeout", "timeout_s", type=float, help="Seconds that each run may take.")
@output_options
def command(
    folder: Path,
    checkpoint: Path,
    on: str | None,
    new_tokens: int | None,
    batch_size: int | None,
    shards: Path | None,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Prove the plan in FOLDER by generating with it and with the plain model.

    The plain model, the folder's generate.py with as many processes as the plan has ranks, and, of a runtime
    that takes one, device_map.json alone. The exit status is 1 when tokens or logits differ.
    """
    report = verify(
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
        raise VerificationError(f"the plan does not generate what the plain model does: {words}")


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
