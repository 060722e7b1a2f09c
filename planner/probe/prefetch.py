"""Fills the page cache with the files that the next part imports: `python -m planner.probe.prefetch`.

On a freshly started machine, reading the thousands of small files of transformers takes longer than the
measurements that use them. transformers builds its index of classes from the source of every model module, so
several threads read these files; importing the part reads the rest, and compiles bytecode where needed.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_READERS: Final = 16
#: The lowest scheduling priority, so that a running measurement is disturbed as little as possible.
_NICE: Final = 19
_IMPORTED: Final = "planner.probe.parts.overheads"
#: Prefixes of files that transformers does not read for its index.
_NOT_READ: Final = ("_", "modular_")


def main() -> None:
    """Read and import the files, then exit; their pages stay in the page cache."""
    os.nice(_NICE)
    with ThreadPoolExecutor(_READERS) as pool:
        for path in model_files():
            pool.submit(_read, path)
        import_module(_IMPORTED)


def model_files() -> list[Path]:
    """The model files that transformers reads when it is imported."""
    spec = find_spec("transformers")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return [
        path
        for folder in folders
        for path in sorted(Path(folder, "models").glob("*/*.py"))
        if not path.name.startswith(_NOT_READ)
    ]


def _read(path: Path) -> None:
    # The part that imports an unreadable file reports the error.
    with suppress(OSError):
        path.read_bytes()


if __name__ == "__main__":
    main()
