"""From user input to a `HardwareProfile`: a name, a count such as `8xa100-80g`, or the path of a TOML file.

A name is a file's name under `profiles/`, in any case, with or without vendor words: `rtx4090`, `4090` and
`NVIDIA GeForce RTX 4090` are `rtx-4090`; `V100-SXM2-16GB` is `v100-16g`. An ambiguous name (`v100`) is
refused with a list of the candidates. `NxGPU` is N GPUs in a host with N times the cores and memory of that
GPU's typical host; for another host, write a file or override its numbers.
"""

import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Final

from planner.errors import InvalidInputError, ProfileError, UnknownNameError
from planner.hardware import assemble, files
from planner.hardware.files import MachineFile
from planner.schema.hardware import HardwareProfile

_FOLDERS: Final = ("gpus", "instances", "hosts")
_COUNT: Final = re.compile(r"(?P<count>\d+)\s*[x×]\s*(?P<gpu>\D.*)")
_VENDOR_WORDS: Final = re.compile(r"nvidia|geforce|tesla|quadro|rtx|sxm\d?")
_SEPARATOR: Final = re.compile(r"[\s_-]+")
_GIGABYTES: Final = re.compile(r"(?<=\d)gi?b")
_MAX_GPUS: Final = 1024


def names() -> tuple[str, ...]:
    """Every profile in the package: GPUs, then cloud instances, then hosts without a GPU."""
    return tuple(name for folder in _FOLDERS for name in files.known(folder))


def load(name: str) -> HardwareProfile:
    """The profile called `name`.

    Raises:
        UnknownNameError: the name is unknown or ambiguous; the message lists the nearest.
        InvalidInputError: the count is out of range, or the counted name is not a GPU.
        ProfileError: the file cannot be used; the message names it and the key.
    """
    text = name.strip()
    if text.endswith(".toml") or "/" in text:
        return _from_file(Path(text))
    counted = _COUNT.fullmatch(text.lower())
    if counted is not None:
        return _several(int(counted["count"]), counted["gpu"], text)
    return _shipped(_resolve(text, names()))


@cache
def _shipped(name: str) -> HardwareProfile:
    folder = next(folder for folder in _FOLDERS if name in files.known(folder))
    if folder == "gpus":
        return _assembled(name, files.gpu_machine(name), name)
    return _assembled(name, files.read(files.ROOT / folder / f"{name}.toml", MachineFile), name)


def _from_file(path: Path) -> HardwareProfile:
    return _assembled(path.stem, files.read(path, MachineFile), str(path))


def _assembled(name: str, machine: MachineFile, where: str) -> HardwareProfile:
    try:
        profile = assemble.profile(
            name,
            machine,
            gpu_machine=_named_gpu(machine),
            cpu=_named_cpu(machine),
            defaults=files.defaults(),
        )
    except ProfileError as error:
        raise ProfileError(f"hardware profile {where}: {error}") from error
    files.check(profile, where)
    return profile


def _named_gpu(machine: MachineFile) -> MachineFile | None:
    if not isinstance(machine.gpu, str):
        return None
    known = files.known("gpus")
    if machine.gpu not in known:
        raise ProfileError(f"key gpu: no GPU is called {machine.gpu!r}; known are {', '.join(known)}")
    return files.gpu_machine(machine.gpu)


def _named_cpu(machine: MachineFile) -> files.CpuFile | None:
    name = machine.host.cpu
    if name is None:
        return None
    known = files.known("cpus")
    if name not in known:
        raise ProfileError(f"key host.cpu: no processor is called {name!r}; known are {', '.join(known)}")
    return files.cpu(name)


def _several(count: int, gpu: str, text: str) -> HardwareProfile:
    if not 1 <= count <= _MAX_GPUS:
        raise InvalidInputError(f"{text!r} asks for {count} GPUs; a count is 1 to {_MAX_GPUS}, as in 4xt4")
    resolved = _resolve(gpu, names())
    if resolved not in files.known("gpus"):
        raise InvalidInputError(
            f"{text!r} counts {resolved}, which is a whole machine; a count goes with a GPU, as in 4xt4"
        )
    single = _shipped(resolved)
    if count == 1:
        return single
    return assemble.scaled(single, count, f"{count}x{resolved}")


def _resolve(text: str, known: tuple[str, ...]) -> str:
    """The name of the only profile that `text` matches."""
    plain = text.lower()
    if plain in known:
        return plain
    wanted = _bare(plain)
    matches = [name for name in known if wanted and _bare(name) == wanted]
    matches = matches or [name for name in known if _words(name) == _words(plain)]
    if len(matches) == 1:
        return matches[0]
    starting = [name for name in known if wanted and _bare(name).startswith(wanted)]
    if len(starting) > 1:
        raise UnknownNameError(
            f"hardware profile {text!r} could be any of {', '.join(starting)}; write one of them"
        )
    near = starting or get_close_matches(plain, known, n=4, cutoff=0.5)
    hint = f"the nearest: {', '.join(near)}; " if near else ""
    raise UnknownNameError(
        f"unknown hardware profile {text!r}; {hint}`planner hardware list` shows all, "
        "and a path to a .toml file works as well"
    )


def _bare(name: str) -> str:
    """The name without vendor words and separators."""
    return "".join(_split(name))


def _words(name: str) -> list[str]:
    """The words of a name, sorted, because their order varies: A100-PCIe-80GB, a100-80g-pcie."""
    return sorted(_split(name))


def _split(name: str) -> list[str]:
    return [word for word in _SEPARATOR.split(_GIGABYTES.sub("g", _VENDOR_WORDS.sub("", name))) if word]
