"""Loads an emitted folder as its generate.py does; says which parameters are there, forward after forward.

Usage: `zero_inference_residency.py FOLDER CHECKPOINT OFFLOAD_FOLDER OUT`, one process, a decoder.
"""

import json
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Write the names of whole parameters before the first forward and after each of five.

    And for each module how many elements are there at the most when it begins, those aside that stay; and for
    each parameter its bytes on the device while it is whole, which is after the last forward.
    """
    folder, checkpoint, offload_folder, out = sys.argv[1:]
    sys.path.insert(0, folder)
    script = runpy.run_path(str(Path(folder) / "generate.py"), run_name="emitted")
    model = script["load"](checkpoint, offload_folder)

    import torch
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    def whole() -> list[str]:
        return [n for n, p in model.named_parameters() if p.ds_status is ZeroParamStatus.AVAILABLE]

    held: dict[str, int] = {}

    def note(name: str) -> None:
        there = [p for p in model.parameters() if p.ds_status is not ZeroParamStatus.NOT_AVAILABLE]
        held[name] = max(held.get(name, 0), sum(p.ds_numel for p in there if not p.ds_persist))

    for name, module in model.named_modules():
        # DeepSpeed's hook has fetched before this one runs.
        module.register_forward_pre_hook(lambda *_, name=name: note(name))
    found = [whole()]
    with torch.no_grad():
        for length in (4, 1, 1, 3, 1):
            model(input_ids=torch.full((1, length), 7))
            found.append(whole())
    resident = {n: p.numel() * p.element_size() for n, p in model.named_parameters() if n in found[-1]}
    Path(out).write_text(json.dumps({"whole": found, "held": held, "resident": resident}))


if __name__ == "__main__":
    main()
