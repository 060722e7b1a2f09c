"""Child processes measured, and tables of what was found; for `resharding.py`."""

import datetime
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

CHILDREN: Final = Path(__file__).with_name("resharding_children.py")
#: Its own work tree is measured, whatever is installed.
_ROOT: Final = str(Path(__file__).resolve().parents[2])
_SAMPLE_S: Final = 0.004


def _environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": _ROOT} | more


class Run(NamedTuple):
    """One child: wall seconds, peak anonymous and peak resident bytes, standard output."""

    elapsed_s: float
    anonymous_bytes: int
    resident_bytes: int
    output: str


def measure(*command: object) -> Run:
    """Run one child to its end, sampling its memory."""
    start = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE, env=_environment()
    )
    status, anonymous, resident = Path(f"/proc/{process.pid}/status"), 0, 0
    while process.poll() is None:
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except ProcessLookupError:
            continue
        if "RssAnon" in lines:
            anonymous = max(anonymous, int(lines["RssAnon"].split()[0]) << 10)
            resident = max(resident, int(lines["VmHWM"].split()[0]) << 10)
        time.sleep(_SAMPLE_S)
    elapsed_s = time.perf_counter() - start
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{errors}{' '.join(map(str, command))} ended with status {process.returncode}")
    return Run(elapsed_s, anonymous, resident, output)


def load(folders: list[Path], way: str) -> tuple[float, int, float]:
    """Load one model, a rank from each folder.

    Returns:
        The slowest rank's seconds, the most bytes that the disk gave any rank, and the logits' magnitude.
    """
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    group = {"WORLD_SIZE": str(len(folders)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    processes = [
        subprocess.Popen(
            (sys.executable, CHILDREN, "load", folder, way),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(**group, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank, folder in enumerate(folders)
    ]
    said = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            raise SystemExit(f"{errors}loading {way} over {len(folders)} ranks failed")
    found = [next(x for x in o.splitlines() if x.startswith("result ")).split()[1:] for o, _ in said]
    return max(float(f[0]) for f in found), max(int(f[1]) for f in found), float(found[0][2])


def size_of(folder: Path) -> int:
    """Bytes of the shards in it."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def table(*head: object) -> None:
    """Begin a table."""
    row(*head)
    row(*("---" for _ in head))


def row(*cells: object) -> None:
    """One row."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def machine(folder: Path) -> str:
    memory = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemTotal"))
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ":unknown")
    words = "FSTYPE,SOURCE,OPTIONS"
    disk = subprocess.run(
        ("findmnt", "-nro", words, "-T", folder), capture_output=True, text=True, check=False
    ).stdout.split()
    names = ("torch", "transformers", "deepspeed", "safetensors", "numpy", "msgspec")
    system = f"{platform.machine()}, {platform.system()} {platform.release()}"
    cpu = f"{os.cpu_count()} CPUs ({model.split(':')[1].strip()})"
    lines = (
        f"{datetime.date.today()}, {system}, {cpu}, {int(memory.split()[1]) / 1e6:.1f} GB RAM",
        f"{' on '.join(disk[:2])}, {shutil.disk_usage(folder).free / 1e9:.0f} GB free",
        f"load before: {os.getloadavg()[0]:.1f}",
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names),
    )
    return "\n".join(f"- {line}" for line in lines)
