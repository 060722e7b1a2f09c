"""Checkpoints, quantized ones, and models with the decoded weights in the place of their own."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fixtures import tiny
from fixtures.families import FAMILIES
from quantize.convert import quantize
from quantize.formats.base import Output
from quantize.groups import blocks
from quantize.select import decide, quantized
from reshard.job import Request, open_source
from reshard.run import Report
from tests.integration.reshard.variants import Tensors, load

IDS = torch.tensor([[5, 80, 17, 200, 43, 9, 121, 66]])

#: A weight's block → what its codes mean, in the weight's dtype.
Restore = Callable[[blocks.Block], blocks.Block]


def save(family: str, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Tensors:
    """Write the family's tiny checkpoint, with other `settings`, into `folder`; its tensors."""
    spec = FAMILIES[family]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, family, spec._replace(settings=spec.settings | settings))
        tiny.build(family).to(dtype).save_pretrained(folder)
    return load(folder)


def make(source: Path, folder: Path, output: Output, *degrees: int, **options: Any) -> Report:
    """Quantize with room for whatever else this process has loaded."""
    patterns = {key: options.pop(key) for key in ("include", "exclude") if key in options}
    settings = {"memory_bytes": 4 << 30, "jobs": 2} | options
    request = Request(source=str(source), output=folder, degrees=degrees or (1,), **settings)
    return quantize(request, output, **patterns)


def chosen(source: Path, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> tuple[str, ...]:
    """The weights that are quantized."""
    return quantized(decide(open_source(str(source)), include, exclude))


def block(tensor: torch.Tensor) -> blocks.Block:
    """The tensor as the arithmetic takes it."""
    flat = tensor.contiguous()
    return flat.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else flat.numpy()


def tensor(found: np.ndarray[Any, Any]) -> torch.Tensor:
    """And back."""
    made = torch.from_numpy(np.ascontiguousarray(found))
    return made.view(torch.bfloat16) if made.dtype == torch.uint16 else made


def restored(tensors: Tensors, names: Iterable[str], restore: Restore) -> Tensors:
    """The tensors, those called `names` encoded and decoded."""
    return tensors | {name: tensor(restore(block(tensors[name]))) for name in names}


def model_class(folder: Path) -> Any:
    """The class that the checkpoint's configuration names."""
    return getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])


def load_model(folder: Path, **options: Any) -> Any:
    """The model in `folder`, whose every tensor has found its place."""
    model, told = model_class(folder).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(told.values()), told
    return model.eval()


def plain_model(folder: Path, tensors: Tensors, work: Path) -> Any:
    """The model of `folder` with other tensors."""
    from safetensors.torch import save_file

    work.mkdir()
    for path in folder.glob("*.json"):
        (work / path.name).write_bytes(path.read_bytes())
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, work / "model.safetensors", {"format": "pt"}
    )
    return load_model(work)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """What the model makes of a few tokens."""
    start = {"decoder_input_ids": IDS[:, :4]} if model.config.is_encoder_decoder else {}
    found: torch.Tensor = model(IDS, **start).logits
    return found


@torch.no_grad()
def generated(model: Any) -> list[int]:
    """Eight tokens more."""
    made: list[int] = model.generate(IDS, max_new_tokens=8, do_sample=False)[0].tolist()
    return made
