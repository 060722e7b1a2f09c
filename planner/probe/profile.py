"""Turns findings into a machine's profile file, which `planner plan --hardware` reads. Pure."""

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from planner.errors import RuntimeFailure
from planner.hardware.files import MachineFile
from planner.probe.findings import Findings
from planner.probe.fits import Measurement
from planner.schema.workload import DTYPE_BYTES

_GEMV: Final = "host.gemv_bytes_per_s."
_FEW_ROWS: Final = "host.few_rows_flops_per_s."
#: The processor's quantities for each dtype; they are kept or left out together.
_BY_DTYPE: Final = ("host.flops_per_s.", _GEMV, _FEW_ROWS, "host.attention_bytes_per_s.")
_THREAD: Final = "cpu_thread_bytes_per_s."
#: The quantities without which the profile has no GPU.
_GPU_NEEDS: Final = (
    "gpu.memory_bytes",
    "gpu.context_bytes",
    "gpu.memory_bandwidth_bytes_per_s",
    *(
        f"{direction}.{kind}_bytes_per_s"
        for direction in ("host_to_device", "device_to_host")
        for kind in ("pinned", "pageable")
    ),
)
_PEER: Final = ("peer.pinned_bytes_per_s", "peer.pageable_bytes_per_s")
_DISK_NEEDS: Final = ("disk.capacity_bytes", "disk.read_bytes_per_s")
#: A dtype is taken as emulated when one thread's matrix-vector products reach less than this share of the
#: rate of the dtype that the profile's memory bandwidth is taken from.
_EMULATED: Final = 0.25
#: The order of a profile's tables.
_TABLES: Final = (
    "gpu", "gpu.flops_per_s", "host_to_device", "device_to_host", "peer", "fabric",
    "host", "host.flops_per_s", "host.gemv_bytes_per_s",
    *(f"{_FEW_ROWS}{dtype}" for dtype in DTYPE_BYTES), "host.attention_bytes_per_s", "disk",
)  # fmt: skip


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a probe.

    Attributes:
        description: the machine in one line.
        tables: table of the profile's file → key → value: a measurement, a count or a name.
        num_gpus: number of GPUs in the profile.
        missing: sentences about quantities that could not be measured.
        series: details behind the quantities; see `Findings`.
        date: of the measurement, in ISO format.
        versions: library → version.
    """

    description: str
    tables: dict[str, dict[str, Measurement | int | str]]
    num_gpus: int
    missing: tuple[str, ...]
    series: dict[str, dict[str, float]]
    date: str
    versions: dict[str, str]


def probed(findings: Findings, *, date: str, versions: Mapping[str, str]) -> Probed:
    """Build a profile's tables from the findings of all parts.

    A GPU or a disk with missing quantities is left out, and a sentence in `missing` says so.

    Args:
        findings: of all parts.
        date: of the measurement, in ISO format.
        versions: library → version, of the libraries used for the measurement.

    Raises:
        RuntimeFailure: the processor or its memory could not be measured.
    """
    quantities, missing = dict(findings.quantities), list(findings.missing)
    num_gpus = _complete_gpus(quantities, findings, missing)
    if any(need not in quantities for need in _DISK_NEEDS):
        _drop(quantities, "disk.")
    _choose_cpu_rates(quantities, has_gpu=num_gpus > 0, missing=missing)
    tables: dict[str, dict[str, Measurement | int | str]] = {}
    for path, measurement in quantities.items():
        table, _, key = path.rpartition(".")
        tables.setdefault(table, {})[key] = measurement
    if "installed_memory_bytes" not in tables.get("host", {}) or "host.flops_per_s" not in tables:
        raise RuntimeFailure("a profile needs measurements of the processor: " + "; ".join(missing))
    tables["host"]["num_cores"] = findings.facts["num_cores"]
    if num_gpus:
        tables["gpu"]["name"] = findings.facts["gpu_name"]
    if "fabric" in tables:
        tables["fabric"]["kind"] = findings.facts.get("fabric_kind", "pcie")
    return Probed(
        description=_description(findings, quantities, num_gpus),
        tables={name: tables[name] for name in _TABLES if name in tables},
        num_gpus=num_gpus,
        missing=tuple(missing),
        series=findings.series,
        date=date,
        versions=dict(versions),
    )


def _complete_gpus(quantities: dict[str, Measurement], findings: Findings, missing: list[str]) -> int:
    """The number of GPUs that the profile can describe; quantities that need more GPUs are removed."""
    count = int(findings.facts.get("num_gpus", 0))
    lacking = [need for need in _GPU_NEEDS if need not in quantities]
    if not any(path.startswith("gpu.flops_per_s.") for path in quantities):
        lacking.append("gpu.flops_per_s")
    if count and lacking:
        missing.append(f"the profile has no GPU, because these could not be measured: {', '.join(lacking)}")
        count = 0
    if count > 1 and any(need not in quantities for need in _PEER):
        missing.append(
            f"the profile has 1 of {count} GPUs, because copies between them could not be measured"
        )
        count = 1
    for prefix, least in (
        ("gpu.", 1),
        ("host_to_device.", 1),
        ("device_to_host.", 1),
        ("peer.", 2),
        ("fabric.", 2),
    ):
        if count < least:
            _drop(quantities, prefix)
    return count


def _choose_cpu_rates(quantities: dict[str, Measurement], *, has_gpu: bool, missing: list[str]) -> None:
    """Set the memory bandwidth from the matrix-vector rate of the dtype that weights usually have there.

    Without a GPU, a dtype that the processor emulates is left out, because plans should not use it. With a
    GPU it is kept: plans in this dtype run on the GPU.
    """
    by_dtype, by_thread = _under(quantities, _GEMV), _under(quantities, _THREAD)
    _drop(quantities, _THREAD)
    if not by_dtype:
        for table in _BY_DTYPE:
            _drop(quantities, table)
        return
    wanted = ("bfloat16", "float32") if has_gpu else ("float32", "bfloat16")
    dtype = next((name for name in wanted if name in by_dtype), next(iter(by_dtype)))
    quantities["host.memory_bandwidth_bytes_per_s"] = by_dtype[dtype]
    for name, measurement in by_thread.items():
        if dtype in by_thread and measurement.value < _EMULATED * by_thread[dtype].value and not has_gpu:
            for table in _BY_DTYPE:
                _drop(quantities, f"{table}{name}")
            missing.append(
                f"{name} on the processor is left out because it is emulated: matrix-vector products of one "
                f"thread reach {measurement.value / 1e9:.3g} GB/s in {name} and "
                f"{by_thread[dtype].value / 1e9:.3g} GB/s in {dtype}"
            )


def _under(quantities: Mapping[str, Measurement], prefix: str) -> dict[str, Measurement]:
    """The quantities whose path starts with a prefix, by the rest of the path."""
    return {
        path.removeprefix(prefix): measurement
        for path, measurement in quantities.items()
        if path.startswith(prefix)
    }


def _drop(quantities: dict[str, Measurement], prefix: str) -> None:
    for path in [path for path in quantities if path.startswith(prefix)]:
        del quantities[path]


def _description(findings: Findings, quantities: Mapping[str, Measurement], num_gpus: int) -> str:
    facts = findings.facts
    installed = quantities.get("host.installed_memory_bytes")
    memory = 0 if installed is None else installed.value / 2**30
    gpus = f"{num_gpus} × {facts['gpu_name']}, " if num_gpus else "no GPU, "
    return f"{gpus}{facts.get('num_cores', '?')} cores ({facts.get('cpu_name', '?')}), {memory:.0f} GiB"


def note(measurement: Measurement, date: str, versions: Mapping[str, str]) -> str:
    """The note of a measured number in a profile's file.

    Args:
        measurement: the number.
        date: of the measurement, in ISO format.
        versions: library → version.
    """
    runs = ""
    if measurement.num_samples > 1:
        runs = f"{measurement.average} of {measurement.num_samples}, spread {measurement.spread:.1%}; "
    return f"{measurement.method}; {runs}{' '.join(f'{k} {v}' for k, v in versions.items())}, {date}"


def to_toml(result: Probed) -> str:
    """The text of the profile's file, with the details as comments.

    Raises:
        RuntimeFailure: the measurements do not give a valid profile.
    """
    lines = [f"# Measured by `planner probe` on {result.date}."]
    lines += [f"# {sentence}" for sentence in result.missing]
    lines += [f"description = {_text(result.description)}", f"num_gpus = {result.num_gpus}"]
    for name, table in result.tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_value(table[key], result)}" for key in sorted(table, key=_count)]
    lines += ["", "# Details."]
    for name, values in result.series.items():
        lines.append(f"# {name}: " + ", ".join(f"{label}: {value:.4g}" for label, value in values.items()))
    text = "\n".join(lines) + "\n"
    _check(text)
    return text


def _count(key: str) -> int:
    """Sort key: numbers of rows in ascending order, after names, which keep their order."""
    return int(key) if key.isdigit() else 0


def _check(text: str) -> None:
    import tomllib

    try:
        msgspec.convert(tomllib.loads(text), MachineFile, str_keys=True)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError) as error:
        raise RuntimeFailure(f"the measurements do not give a valid profile: {error}") from error


def _value(value: Measurement | int | str, result: Probed) -> str:
    if isinstance(value, Measurement):
        quoted_note = _text(note(value, result.date, result.versions))
        return f'{{ value = {_number(value.value)}, source = "measured", note = {quoted_note} }}'
    return str(value) if isinstance(value, int) else _text(value)


def _number(value: float) -> str:
    """Five significant digits; whole numbers, such as bytes, in full."""
    return str(int(value)) if float(value).is_integer() else f"{value:.5g}"


def _text(value: Any) -> str:
    """A TOML basic string; its escapes are the same as in JSON."""
    return json.dumps(str(value), ensure_ascii=False)
