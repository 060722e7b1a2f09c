"""Host memory as reported by the kernel: how much is installed, and how much a process can use now."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

_MOUNT: Final = "sys/fs/cgroup"


class _Version(msgspec.Struct, frozen=True, kw_only=True):
    """File names of one version of control groups.

    Attributes:
        controllers: entry in the controllers column of /proc/self/cgroup; empty in version 2.
        mount: mount point, relative to the root.
        limit, used: files that contain a number of bytes; a limit may be `max`.
        files: keys of `memory.stat` for pages of files, which the kernel reclaims when a limit is reached.
    """

    controllers: str
    mount: str
    limit: str
    used: str
    files: tuple[str, str]


#: Source: cgroups(7); the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.
_VERSIONS: Final = (
    _Version(
        controllers="",
        mount=_MOUNT,
        limit="memory.max",
        used="memory.current",
        files=("active_file", "inactive_file"),
    ),
    _Version(
        controllers="memory",
        mount=f"{_MOUNT}/memory",
        limit="memory.limit_in_bytes",
        used="memory.usage_in_bytes",
        files=("total_active_file", "total_inactive_file"),
    ),
)


def installed_bytes(system: Path) -> tuple[int, str]:
    """Installed memory, or a smaller limit of a control group.

    Args:
        system: folder that contains `proc` and `sys`.

    Returns:
        The number of bytes, and its source in words.

    Raises:
        ValueError: the kernel does not report the installed memory.
    """
    total = _meminfo(system, "MemTotal")
    smallest = min([total, *(limit for _, _, limit in _limits(system))])
    return smallest, "MemTotal of /proc/meminfo" if smallest == total else "memory limit of the control group"


def available_bytes(system: Path) -> tuple[int, str]:
    """Memory that processes can still allocate without swapping, at most what control groups leave.

    Args:
        system: folder that contains `proc` and `sys`.

    Returns:
        The number of bytes, and its source in words.

    Raises:
        ValueError: the kernel does not report the available memory, or none is available.
    """
    amounts = [(_meminfo(system, "MemAvailable"), "MemAvailable of /proc/meminfo")]
    for version, group, limit in _limits(system):
        left = limit - _used_bytes(version, group)
        amounts.append((left, "memory limit of the control group, less what it uses"))
    smallest, how = min(amounts)
    if smallest <= 0:
        raise ValueError(f"{how} leaves {smallest} bytes; free memory, and probe again")
    return smallest, how


def _meminfo(system: Path, key: str) -> int:
    for line in (system / "proc/meminfo").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/meminfo has no {key}")


def _limits(system: Path) -> Iterator[tuple[_Version, Path, int]]:
    """Every limit that applies to this process: those of its own group and of all its ancestors."""
    for version in _VERSIONS:
        for group in _groups(version, system):
            file = group / version.limit
            if file.is_file() and (text := file.read_text().strip()).isdigit():
                yield version, group, int(text)


def _groups(version: _Version, system: Path) -> list[Path]:
    """Folders from this process's group up to the mount point; a container may see only the mount point."""
    mount, table = system / version.mount, system / "proc/self/cgroup"
    for line in table.read_text().splitlines() if table.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if version.controllers in controllers.split(","):
            own = PurePosixPath(path.lstrip("/"))
            return [mount / own, *(mount / parent for parent in own.parents)]
    return [mount]


def _used_bytes(version: _Version, group: Path) -> int:
    """Memory that a group uses, without pages of files, which the kernel can reclaim."""
    used = int((group / version.used).read_text())
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return used - sum(int(value) for key, value in lines if key in version.files)
