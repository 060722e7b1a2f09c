"""`python -m planner.tracing.ship [NAME...]` traces the shipped models and writes their graphs."""

import json
import sys
import time
from pathlib import Path

from planner.files import write_atomically
from planner.graph.compact import encode
from planner.models.shipped import shipped_names, shipped_spec
from planner.tracing.store import trace_spec


def main(names: list[str]) -> None:
    """Trace `names` (all shipped models when empty), and write their graphs and the index."""
    folder = Path(__file__).with_name("shipped")
    for name in names or shipped_names():
        start = time.perf_counter()
        payload = encode(trace_spec(shipped_spec(name)))
        write_atomically(folder / f"{name}.json", payload)
        print(f"{name}: {len(payload):,} bytes in {time.perf_counter() - start:.1f} s", flush=True)
    present = [name for name in shipped_names() if (folder / f"{name}.json").exists()]
    index = {shipped_spec(name).config_sha256: name for name in present}
    write_atomically(folder / "index.json", json.dumps(index, indent=1, sort_keys=True).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
