"""The process that measures one part: `python -m planner.probe.child PART OUT OPTIONS`.

Nothing here is imported by the planner. What was found is written to OUT as JSON; OPTIONS is JSON as well. A
part is a module of `parts` with a function `measure`, and imports no more than it needs.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import msgspec

from planner.probe.findings import Findings

_PARTS: Final = ("collectives", "cpu", "disk", "gpu", "overheads")


def main(part: str, out: Path, options: dict[str, Any]) -> None:
    """Measure one part and write what was found."""
    if part not in _PARTS:
        raise SystemExit(f"no part of a probe is called {part!r}; the parts are {', '.join(_PARTS)}")
    findings = Findings()
    with findings.clocked(f"imports of {part}"):
        module = import_module(f"planner.probe.parts.{part}")
    module.measure(findings, **options)
    if os.environ.get("RANK", "0") == "0":
        out.write_bytes(msgspec.json.encode(findings))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
