"""Host overhead of each tensor that Accelerate streams to a device and removes again, without the copy.

Three runs alternate: a forward with streamed layers, the same forward with resident layers, and the copies
alone. The excess of the first over the sum of the others is divided by the number of streamed tensors.
"""

import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import dispatch_model
from accelerate.utils import modeling
from safetensors.torch import save_file

from planner.probe.clock import alternate
from planner.probe.core_rotation import CoreRotation
from planner.probe.findings import Findings
from planner.probe.fits import excess
from planner.probe.parts import models

#: Widths to choose from, and the share of the free GPU memory that the layers may take.
_WIDTHS: Final = (5120, 4096, 2048, 1024)
_SHARE: Final = 0.15
_LAYERS: Final = 3
_BUDGET_S: Final = 1.25
_LEAST: Final = 5
_PREFIX: Final = "model.decoder.layers"


@torch.no_grad()
def from_pinned_memory(findings: Findings, move: CoreRotation) -> None:
    """Measure on a GPU, with layers of realistic width, so that waiting for each copy is included."""
    width = _width()
    resident = models.opt(width, _LAYERS, "cuda", torch.float16)
    _dispatch(resident, dict.fromkeys(models.leaves(resident), 0))
    streamed = models.opt(width, _LAYERS, "cuda", torch.float16)
    state = {}
    for name, parameter in streamed.model.decoder.layers.named_parameters():
        state[f"{_PREFIX}.{name}"] = parameter.data = parameter.data.cpu().pin_memory()
    # The emitted script does the same.
    modeling.clear_device_cache = lambda *_, **__: None
    _dispatch(streamed, _places(streamed, 0, "cpu", _LAYERS), main_device=0, state_dict=state)
    ids = torch.ones(1, 1, dtype=torch.long, device="cuda")
    steps, without, copies = alternate(
        [lambda: streamed(ids), lambda: resident(ids), lambda: [t.to("cuda") for t in state.values()]],
        torch.cuda.synchronize,
        budget_s=_BUDGET_S,
        least=_LEAST,
        before=move,
    )
    findings.quantities["host.tensor_move_overhead_s"] = excess(
        steps,
        [resident_s + copies_s for resident_s, copies_s in zip(without, copies, strict=True)],
        len(state),
        f"{_LAYERS} layers of width {width}, {len(state)} pinned tensors, beyond their copies",
        move.num_cores,
    )


@torch.no_grad()
def from_files(findings: Findings, move: CoreRotation) -> None:
    """Measure on the CPU, with narrow layers in files in the page cache, so that copies are negligible."""
    resident, streamed = models.narrow("opt", "cpu"), models.narrow("opt", "cpu")
    _dispatch(resident, dict.fromkeys(models.leaves(resident), "cpu"))
    ids = torch.ones(1, 1, dtype=torch.long)
    with tempfile.TemporaryDirectory(prefix="probe-") as scratch:
        state = {name: value for name, value in streamed.state_dict().items() if name.startswith(_PREFIX)}
        file = str(Path(scratch) / "layers.safetensors")
        save_file(state, file)
        index = {name: {"safetensors_file": file, "weight_name": name, "dtype": "float32"} for name in state}
        places = _places(streamed, "cpu", "disk", models.LAYERS)
        _dispatch(streamed, places, main_device="cpu", offload_index=index, offload_dir=scratch)
        steps, without = alternate(
            [lambda: streamed(ids), lambda: resident(ids)], budget_s=_BUDGET_S, least=_LEAST, before=move
        )
    findings.quantities["host.tensor_move_overhead_s"] = excess(
        steps,
        without,
        len(index),
        f"{len(index)} small tensors of files in the page cache, each fetched by Accelerate",
        move.num_cores,
    )


def _places(model: Any, device: int | str, layers_on: str, num_layers: int) -> dict[str, Any]:
    """A device map with the layers on `layers_on` and all other modules on `device`."""
    places: dict[str, Any] = {name: device for name in models.leaves(model) if not name.startswith(_PREFIX)}
    return places | {f"{_PREFIX}.{index}": layers_on for index in range(num_layers)}


def _dispatch(model: Any, places: dict[str, Any], **options: Any) -> None:
    """Add Accelerate's hooks with the same options as in emitted plans."""
    dispatch_model(model, places, skip_keys="past_key_values", force_hooks=True, **options)


def _width() -> int:
    """The largest width whose layers, resident and streamed, fit in `_SHARE` of the free GPU memory."""
    free, _ = torch.cuda.mem_get_info(0)
    for width in _WIDTHS:
        if 2 * _LAYERS * 12 * width * width * 2 < _SHARE * free:
            return width
    return _WIDTHS[-1]
