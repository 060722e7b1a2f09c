"""Decode a quantized checkpoint into a plain one, with the arithmetic of its runtime."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from reshard.dtypes import dtype
from reshard.encoding import Encoded, Encoder
from reshard.errors import DamagedFileError, UnsupportedSourceError
from reshard.formats.base import Source
from reshard.job import Job, Request
from reshard.layout import Box
from reshard.model import with_dtype
from reshard.run import Report, reshard
from reshard.tensors import LogicalTensor
from reshard.whole_tensors import fetch

from .formats import plain
from .groups import absmax, blocks, row_absmax, symmetric, zero_inference
from .packing import unpack
from .recipes import COMPANIONS, check_recipe
from .scheme import Moq, Rows, Scheme

_FLOATING: Final = ("float32", "float16", "bfloat16")

#: A strip's box and its codes' bits → weights.
Decode = Callable[[Box, NDArray[Any]], blocks.Block]


class _Decoder:
    """An `Encoder` that decodes whole rows in one pass."""

    rows: int = 1
    is_two_pass: bool = False

    def __init__(self, name: str, columns: int, kind: str, decode: Decode) -> None:
        self._name, self._columns, self._kind, self._decode = name, columns, kind, decode

    def observe(self, box: Box, values: NDArray[Any]) -> None:
        """Nothing is needed beforehand."""

    def encode(self, box: Box, values: NDArray[Any]) -> Iterable[Encoded]:
        """The strip's weights in the dtype that was asked for."""
        found = self._decode(box, values)
        wanted = np.dtype(np.uint16 if self._kind == "bfloat16" else self._kind)
        if found.dtype != wanted:
            found = blocks.narrow(blocks.widen(found), wanted)
        yield self._name, (box[0], (0, self._columns)), found


class Dequantization:
    """The `reshard.encoding.Transform` that decodes a quantized checkpoint."""

    def __init__(self, source: Source, kind: str) -> None:
        """Prepare.

        Args:
            source: the quantized checkpoint.
            kind: the dtype of the plain one.

        Raises:
            UnsupportedSourceError: it is not quantized, or by a method that is not known.
        """
        recipe = source.model.config.get("quantization_config")
        if not isinstance(recipe, dict):
            raise UnsupportedSourceError(f"{source.folder.path('')} is not quantized")
        check_recipe(source, recipe)
        self._source, self._recipe, self._kind = source, recipe, dtype(kind).name
        companions = [n for n in source.tensors if n.rpartition(".")[2] in COMPANIONS]
        self._dropped = tuple(companions)
        self._held = fetch(source, companions)
        self._made = dict(self._plan())
        self._check_layouts()

    def _plan(self) -> Iterable[tuple[str, tuple[str, tuple[int, int]]]]:
        """Codes → the weight that they stand for, and its shape."""
        for name, tensor in self._source.tensors.items():
            module, _, param = name.rpartition(".")
            if param == "weight_packed":
                yield name, (f"{module}.weight", (tensor.shape[0], self._columns(module, tensor)))
            elif param == "weight" and tensor.dtype in ("int8", "uint8") and len(tensor.shape) == 2:
                yield name, (name, (tensor.shape[0], tensor.shape[1]))

    def _columns(self, module: str, packed: LogicalTensor) -> int:
        """Of the weight: a row may end inside a word."""
        held = self._held.get(f"{module}.weight_shape")
        per_word = 32 // self._bits()
        columns = packed.shape[1] * per_word if held is None else int(held.reshape(-1)[-1])
        if -(-columns // per_word) != packed.shape[1]:
            raise DamagedFileError(
                f"{module}.weight_shape says {columns} columns, which {packed.shape[1]} packed words are not"
            )
        return columns

    def _check_layouts(self) -> None:
        """Check that codes are stored row by row: old releases of bitsandbytes had other layouts."""
        for name, held in self._held.items():
            if name.endswith(".weight_format") and held.any():
                raise UnsupportedSourceError(
                    f"{name} is {int(held.max())}, an old layout of bitsandbytes; only rows are read"
                )

    def apply(self, source: Source) -> Source:
        """The source with weights in the place of codes, and a configuration of a plain model."""
        tensors: dict[str, LogicalTensor] = {}
        for name, tensor in source.tensors.items():
            if name in self._made:
                weight, shape = self._made[name]
                tensors[weight] = LogicalTensor(dtype=self._kind, shape=shape)
            elif name not in self._held:
                is_float = tensor.dtype in _FLOATING
                tensors[name] = LogicalTensor(
                    dtype=self._kind if is_float else tensor.dtype, shape=tensor.shape
                )
        config = {k: v for k, v in source.model.config.items() if k != "quantization_config"}
        model = msgspec.structs.replace(source.model, config=with_dtype(config, self._kind))
        return msgspec.structs.replace(source, tensors=tensors, model=model)

    def derived(self) -> Mapping[str, tuple[str, ...]]:
        """Codes → weight; scales and the like → nothing."""
        return {name: (weight,) for name, (weight, _) in self._made.items()} | dict.fromkeys(
            self._dropped, ()
        )

    def encoder(self, name: str) -> Encoder:
        """A new decoder of the codes called `name`."""
        weight, shape = self._made[name]
        return _Decoder(weight, shape[1], self._kind, self._decode(name, shape))

    def _decode(self, name: str, shape: tuple[int, int]) -> Decode:
        module = name.rpartition(".")[0]
        method = self._recipe["quant_method"]
        if method == "bitsandbytes":
            scales = self._table(module, "SCB")
            kind = np.dtype(np.float32)
            return lambda box, raw: row_absmax.decode(raw.view(np.int8), scales[slice(*box[0])], dtype=kind)
        if method == plain.METHOD:
            return self._plain(module, shape)
        scales = self._table(module, "weight_scale")
        if name.endswith(".weight_packed"):
            bits = self._bits()
            return lambda box, raw: symmetric.decode(
                unpack(raw.view(np.int32), bits, shape[1]), scales[slice(*box[0])]
            )
        return lambda box, raw: symmetric.decode(raw.view(np.int8), scales[slice(*box[0])])

    def _plain(self, module: str, shape: tuple[int, int]) -> Decode:
        try:
            scheme: Scheme = msgspec.convert(self._recipe["scheme"], Scheme)
        except (KeyError, msgspec.ValidationError) as error:
            raise DamagedFileError(f"the recipe of {module} has no scheme that is known: {error}") from error
        scales = self._table(module, plain.scale_param(scheme, shape))
        if isinstance(scheme, Moq | Rows):
            numel = scheme.group_numel(shape)
            kind = np.dtype(np.float32)
            return lambda box, raw: absmax.decode_part(
                raw.view(np.int8), scales, numel, kind, box[0][0] * shape[1]
            )
        if scheme.is_symmetric:
            return lambda box, raw: symmetric.decode(raw.view(np.int8), scales[slice(*box[0])])
        minimum = self._table(module, "weight_minimum")

        def decode(box: Box, raw: NDArray[Any]) -> blocks.Block:
            rows = slice(*box[0])
            return zero_inference.decode(raw, scales[rows][..., None], minimum[rows][..., None])

        return decode

    def _table(self, module: str, param: str) -> NDArray[Any]:
        name = f"{module}.{param}"
        if name not in self._held:
            raise DamagedFileError(f"{self._source.folder.path('')} has codes of {module}, but no {name}")
        raw = self._held[name]
        shape = raw.shape
        return blocks.view(raw.reshape(-1).view(np.uint8), self._source.tensors[name].dtype).reshape(shape)

    def _weights(self, key: str) -> Any:
        groups = self._recipe.get("config_groups") or {}
        values = {(g.get("weights") or {}).get(key) for g in groups.values() if isinstance(g, dict)}
        if len(values) != 1:
            raise UnsupportedSourceError(f"the recipe has {len(values)} values of {key}; one is expected")
        return values.pop()

    def _bits(self) -> int:
        return int(self._weights("num_bits"))


def dequantize(
    request: Request,
    kind: str,
    *,
    progress: Callable[[int], None] = lambda _: None,
    started: Callable[[Job], None] = lambda _: None,
) -> Report:
    """Make a plain checkpoint of a quantized one.

    Args:
        request: what `reshard` is asked for.
        kind: float32, float16 or bfloat16.
        progress: told of bytes read, from any thread.
        started: told of the plan before the first byte is moved.

    Raises:
        CheckpointError: the checkpoint is not quantized, or not in a form that is known.
    """
    if dtype(kind).name not in _FLOATING:
        raise UnsupportedSourceError(f"weights are decoded to {', '.join(_FLOATING)}, not to {kind}")
    return reshard(
        request, progress=progress, started=started, transform=lambda source: Dequantization(source, kind)
    )
