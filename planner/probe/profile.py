"""Pure: findings become a machine's file, which `planner plan --hardware` reads as it is."""

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
#: What is known of the processor for each dtype, and goes with it.
_BY_DTYPE: Final = ("host.flops_per_s.", _GEMV, _FEW_ROWS, "host.attention_bytes_per_s.")
_THREAD: Final = "cpu_thread_bytes_per_s."
#: What a machine with a GPU cannot be planned without.
_GPU_NEEDS: Final = (
    "gpu.memory_bytes",
    "gpu.context_bytes",
    "gpu.memory_bandwidth_bytes_per_s",
    *(
        f"{way}.{kind}_bytes_per_s"
        for way in ("host_to_device", "device_to_host")
        for kind in ("pinned", "pageable")
    ),
)
_PEER: Final = ("peer.pinned_bytes_per_s", "peer.pageable_bytes_per_s")
_DISK_NEEDS: Final = ("disk.capacity_bytes", "disk.read_bytes_per_s")
#: A dtype whose matrix-vector products read so much less than the others', by one thread, is emulated.
_EMULATED: Final = 0.25
#: The order of a profile's tables.
_TABLES: Final = (
    "gpu", "gpu.flops_per_s", "host_to_device", "device_to_host", "peer", "fabric",
    "host", "host.flops_per_s", "host.gemv_bytes_per_s",
    *(f"{_FEW_ROWS}{dtype}" for dtype in DTYPE_BYTES), "host.attention_bytes_per_s", "disk",
)  # fmt: skip


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """A probe's result.

    Attributes:
        description: of the machine, one line.
        tables: table of the file → key → what stands there: a measurement, a number or a word.
        num_gpus: GPUs that the profile has.
        missing: sentences about what could not be measured.
        series: the details behind the numbers.
        date: ISO.
        versions: of the libraries.
    """

    description: str
    tables: dict[str, dict[str, Measurement | int | str]]
    num_gpus: int
    missing: tuple[str, ...]
    series: dict[str, dict[str, float]]
    date: str
    versions: dict[str, str]


def probed(findings: Findings, *, date: str, versions: Mapping[str, str]) -> Probed:
    """What the findings amount to; a GPU or disk of which too little is known is left out, with a sentence.

    Args:
        findings: of all parts.
        date: ISO.
        versions: of the libraries that measured.

    Raises:
        RuntimeFailure: not even the processor could be measured.
    """
    found, missing = dict(findings.quantities), list(findings.missing)
    num_gpus = _complete_gpus(found, findings, missing)
    if any(need not in found for need in _DISK_NEEDS):
        _drop(found, "disk.")
    _choose_cpu_rates(found, has_gpu=num_gpus > 0, missing=missing)
    tables: dict[str, dict[str, Measurement | int | str]] = {}
    for path, one in found.items():
        table, _, key = path.rpartition(".")
        tables.setdefault(table, {})[key] = one
    if "installed_memory_bytes" not in tables.get("host", {}) or "host.flops_per_s" not in tables:
        raise RuntimeFailure("no profile without the processor: " + "; ".join(missing))
    tables["host"]["num_cores"] = findings.facts["num_cores"]
    if num_gpus:
        tables["gpu"]["name"] = findings.facts["gpu_name"]
    if "fabric" in tables:
        tables["fabric"]["kind"] = findings.facts.get("fabric_kind", "pcie")
    return Probed(
        description=_description(findings, found, num_gpus),
        tables={name: tables[name] for name in _TABLES if name in tables},
        num_gpus=num_gpus,
        missing=tuple(missing),
        series=findings.series,
        date=date,
        versions=dict(versions),
    )


def _complete_gpus(found: dict[str, Measurement], findings: Findings, missing: list[str]) -> int:
    """How many GPUs the profile can have; what belongs to the others is dropped."""
    count = int(findings.facts.get("num_gpus", 0))
    lacking = [need for need in _GPU_NEEDS if need not in found]
    if not any(path.startswith("gpu.flops_per_s.") for path in found):
        lacking.append("gpu.flops_per_s")
    if count and lacking:
        missing.append(f"the profile has no GPU, because these could not be measured: {', '.join(lacking)}")
        count = 0
    if count > 1 and any(need not in found for need in _PEER):
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
            _drop(found, prefix)
    return count


def _choose_cpu_rates(found: dict[str, Measurement], *, has_gpu: bool, missing: list[str]) -> None:
    """What each dtype's products read; that of the dtype that weights have there is the memory's bandwidth.

    Without a GPU a dtype that the processor emulates is left out: nobody wants his plans in it. Beside a GPU
    it stays, because plans in it are made for the GPU.
    """
    by_dtype, by_thread = _under(found, _GEMV), _under(found, _THREAD)
    _drop(found, _THREAD)
    if not by_dtype:
        for table in _BY_DTYPE:
            _drop(found, table)
        return
    wanted = ("bfloat16", "float32") if has_gpu else ("float32", "bfloat16")
    dtype = next((name for name in wanted if name in by_dtype), next(iter(by_dtype)))
    found["host.memory_bandwidth_bytes_per_s"] = by_dtype[dtype]
    for name, one in by_thread.items():
        if dtype in by_thread and one.value < _EMULATED * by_thread[dtype].value and not has_gpu:
            for table in _BY_DTYPE:
                _drop(found, f"{table}{name}")
            missing.append(
                f"{name} on the processor is left out: a thread's matrix-vector products read "
                f"{one.value / 1e9:.3g} GB/s and those in {dtype} {by_thread[dtype].value / 1e9:.3g}, so it "
                "is emulated"
            )


def _under(found: Mapping[str, Measurement], prefix: str) -> dict[str, Measurement]:
    """What is found under a prefix, by what follows it."""
    return {path.removeprefix(prefix): one for path, one in found.items() if path.startswith(prefix)}


def _drop(found: dict[str, Measurement], prefix: str) -> None:
    for path in [path for path in found if path.startswith(prefix)]:
        del found[path]


def _description(findings: Findings, found: Mapping[str, Measurement], num_gpus: int) -> str:
    facts = findings.facts
    memory = (
        found["host.installed_memory_bytes"].value / 2**30 if "host.installed_memory_bytes" in found else 0
    )
    gpus = f"{num_gpus} × {facts['gpu_name']}, " if num_gpus else "no GPU, "
    return f"{gpus}{facts.get('num_cores', '?')} cores ({facts.get('cpu_name', '?')}), {memory:.0f} GiB"


def note(one: Measurement, date: str, versions: Mapping[str, str]) -> str:
    """How a number was measured, for the profile."""
    runs = f"{one.average} of {one.num_samples}, spread {one.spread:.1%}; " if one.num_samples > 1 else ""
    return f"{one.method}; {runs}{' '.join(f'{k} {v}' for k, v in versions.items())}, {date}"


def to_toml(result: Probed) -> str:
    """The profile's file, details as comments.

    Raises:
        RuntimeFailure: what was measured makes no profile.
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
    """A key that is a count of rows; names stay where they are, before them."""
    return int(key) if key.isdigit() else 0


def _check(text: str) -> None:
    import tomllib

    try:
        msgspec.convert(tomllib.loads(text), MachineFile, str_keys=True)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError) as error:
        raise RuntimeFailure(f"what was measured makes no profile: {error}") from error


def _value(one: Measurement | int | str, result: Probed) -> str:
    if isinstance(one, Measurement):
        said = _text(note(one, result.date, result.versions))
        return f'{{ value = {_number(one.value)}, source = "measured", note = {said} }}'
    return str(one) if isinstance(one, int) else _text(one)


def _number(value: float) -> str:
    """Five digits; counts of bytes whole."""
    return str(int(value)) if float(value).is_integer() else f"{value:.5g}"


def _text(value: Any) -> str:
    """A basic string of TOML, whose escapes are JSON's."""
    return json.dumps(str(value), ensure_ascii=False)
