"""The child process that measures one part of the machine: `python -m planner.probe.child PART OUT OPTIONS`.

The planner does not import this module. The findings are written to OUT as JSON; OPTIONS is JSON, too. A part
is a module of `planner.probe.parts` with a function `measure`; it imports only what it needs.
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
    """Measure one part and write the findings.

    Args:
        part: name of a module in `planner.probe.parts`.
        out: file for the findings, as JSON; with several ranks only rank 0 writes it.
        options: keyword arguments of the part's `measure`.
    """
    if part not in _PARTS:
        raise SystemExit(f"unknown part {part!r} of the probe; the parts are {', '.join(_PARTS)}")
    findings = Findings()
    with findings.clocked(f"imports of {part}"):
        module = import_module(f"planner.probe.parts.{part}")
    module.measure(findings, **options)
    if os.environ.get("RANK", "0") == "0":
        out.write_bytes(msgspec.json.encode(findings))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
