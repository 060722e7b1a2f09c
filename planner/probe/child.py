"""The process that measures one part: `python -m planner.probe.child PART OUT OPTIONS`.

Nothing here is imported by the planner. What was found is written to OUT as JSON; OPTIONS is JSON as well.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from planner.probe.findings import Findings


def main(part: str, out: Path, options: dict[str, Any]) -> None:
    """Measure one part and write what was found."""
    findings = Findings()
    _measure(part, findings, options)
    if os.environ.get("RANK", "0") == "0":
        out.write_bytes(msgspec.json.encode(findings))


def _measure(part: str, findings: Findings, options: dict[str, Any]) -> None:
    if part == "cpu":
        import torch

        from planner.probe.parts import cpu

        torch.set_num_threads(options["num_cores"])
        cpu.measure(findings)
    elif part == "disk":
        from planner.probe.parts import disk

        findings.attempt("the disk", lambda found: disk.measure(found, Path(options["folder"])))
    elif part == "overheads":
        from planner.probe.parts import overheads

        overheads.measure(findings, options["device"])
    elif part == "gpu":
        from planner.probe.parts import gpu, links

        gpu.measure(findings, options["used_by_others_bytes"])
        findings.attempt("links", links.measure)
    elif part == "collectives":
        from planner.probe.parts import collectives

        collectives.measure(findings, **options)
    else:
        raise SystemExit(f"no part of a probe is called {part!r}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
