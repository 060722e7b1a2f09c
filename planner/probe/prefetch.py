"""Reads from the disk what the next part will import: `python -m planner.probe.prefetch`.

On a machine that has just started, transformers' thousands of small files take longer to come from the disk
than everything that is measured with them. Its index of classes is made of the text of every model's modules,
so these are read by several threads; the rest comes by importing it, which also compiles what is not yet.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_READERS: Final = 16
#: The lowest priority: whatever is measured meanwhile goes first.
_NICE: Final = 19
_IMPORTED: Final = "planner.probe.parts.overheads"
#: Modules that the index leaves out.
_NOT_READ: Final = ("_", "modular_")


def main() -> None:
    """Read and import, then end; the pages stay in memory."""
    os.nice(_NICE)
    with ThreadPoolExecutor(_READERS) as pool:
        for path in model_files():
            pool.submit(_read, path)
        import_module(_IMPORTED)


def model_files() -> list[Path]:
    """What transformers reads of its models when it is imported."""
    spec = find_spec("transformers")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return [
        path
        for folder in folders
        for path in sorted(Path(folder, "models").glob("*/*.py"))
        if not path.name.startswith(_NOT_READ)
    ]


def _read(path: Path) -> None:
    # A file that cannot be read is the importing part's to complain of.
    with suppress(OSError):
        path.read_bytes()


if __name__ == "__main__":
    main()
