"""The measured tables of the pages are those of the rows that `planner bench` wrote."""

from pathlib import Path
from typing import NamedTuple

import pytest

from planner.bench.rows import Row, read

_GIB = 2**30
_TITLES = {"opt-13b": ("OPT-13B", "24 GiB"), "gpt-j-6b": ("GPT-J-6B", "11 GiB")}


class _Case(NamedTuple):
    """The rows of one model under one memory limit."""

    model: str
    cap_gib: int
    rows: list[Row]

    def of(self, kind: str, *, is_largest: bool = False, batch: int | None = None) -> Row:
        named = [row for row in self.rows if row.name.endswith(kind) and batch in (None, row.batch_size)]
        return max(named, key=lambda row: row.batch_size) if is_largest else named[0]


@pytest.fixture(scope="module")
def cases(repository: Path) -> list[_Case]:
    file = repository / "tests/benchmarks/results/2026-11-21-h100-third-rows.jsonl"
    rows = [row for row in read(file) if isinstance(row, Row) and row.measured is not None]
    return [
        _Case(model, cap, [r for r in rows if r.model == model and r.memory_cap_bytes == cap * _GIB])
        for model in _TITLES
        for cap in (16, 8)
    ]


def test_the_table_of_the_readme(cases: list[_Case], repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    for case in cases:
        auto, largest = case.of("auto"), case.of("auto", is_largest=True)
        latency, throughput = case.of("-latency"), case.of("-throughput")
        name, size = _TITLES[case.model]
        line = (
            f"| {name} ({size}), {case.cap_gib} GiB | {auto.tokens_per_s:.3g} "
            f"| {latency.tokens_per_s:.3g} ({latency.tokens_per_s / auto.tokens_per_s:.1f}×) "
            f"| {largest.tokens_per_s:.3g} (batch {largest.batch_size}) "
            f"| {throughput.tokens_per_s:.3g} (batch {throughput.batch_size}, "
            f"{throughput.tokens_per_s / largest.tokens_per_s:.2g}×) |"
        )
        assert line in text


def test_the_table_of_the_accuracy_page(cases: list[_Case], repository: Path) -> None:
    text = (repository / "docs" / "accuracy.md").read_text(encoding="utf-8")
    lines = [line for case in cases for line in _lines(case)]
    assert "\n".join(lines) in text


def _lines(case: _Case) -> list[str]:
    first = f"{_TITLES[case.model][0]}, {case.cap_gib} GiB"
    rows = [
        ('`device_map="auto"`', case.of("auto")),
        ('`device_map="auto"`, its largest', case.of("auto", is_largest=True)),
        ("`--batch 1`", case.of("-latency")),
        ("`--batch 16`", case.of("-batch-16")),
        ("`--batch 64`", case.of("-largest-64", batch=64)),
        ("`--objective throughput`", case.of("-throughput")),
    ]
    return [
        f"| {first if index == 0 else ''} | {how} | {_cells(row)} |" for index, (how, row) in enumerate(rows)
    ]


def _cells(row: Row) -> str:
    measured, predicted = row.measured, row.predicted
    assert measured is not None
    assert predicted is not None
    reserved = max(measured.gpu_peak_reserved_bytes)
    return (
        f"{row.batch_size} | {predicted.prefill_s:.3g} / {measured.prefill_s:.3g} "
        f"| {predicted.decode_s:.3g} / {measured.mean_decode_s:.3g} | {row.tokens_per_s:.3g} "
        f"| {predicted.gpu_bytes[0] / _GIB:.1f} / {reserved / _GIB:.1f}"
    )
