"""The error of every tensor: encoded, decoded and compared while it is streamed; nothing is written."""

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from reshard.budget import Budget
from reshard.dtypes import dtype
from reshard.encoding import EncodingStream, row_strips
from reshard.formats.base import Source
from reshard.plan import TensorCopy, make_plan
from reshard.run import make_budget
from reshard.stream import Buffers, Digests
from reshard.tensors import LogicalTensor

from ..convert import check_unquantized
from ..formats.base import Output
from ..groups import blocks
from ..scheme import Scheme
from ..select import Decision, decide, quantized
from .decoding import RoundTrip, decoder
from .loading import output_of
from .measures import Sums, relative_error, sqnr_db

#: A strip has its codes, its decoded weights and copies of both beside it.
_SHARES: Final = 4
_STRIP_BYTES: Final = 8 << 20


class TensorError(msgspec.Struct, frozen=True, kw_only=True):
    """The error of one tensor. Sums are of the finite weights.

    Attributes:
        decision: its name, its role, whether it is quantized, and why or why not.
        dtype: in the checkpoint; what is decoded is rounded to it.
        shape: its dimensions.
        source_bytes: in the checkpoint.
        output_bytes: its codes, scales and whatever else stands for it.
        weight_energy: the sum of squared weights; 0 where the tensor stays and is not read.
        error_energy: the sum of squared errors.
        relative_error: Frobenius norm of the error over that of the weights.
        sqnr_db: signal to quantization noise; infinite, in JSON null, where there is no error.
        max_abs_error: the largest error.
        num_nonfinite: weights that are NaN or infinite and were taken for zero.
    """

    decision: Decision
    dtype: str
    shape: tuple[int, ...]
    source_bytes: int
    output_bytes: int
    weight_energy: float = 0.0
    error_energy: float = 0.0
    relative_error: float = 0.0
    sqnr_db: float = math.inf
    max_abs_error: float = 0.0
    num_nonfinite: int = 0

    @property
    def name(self) -> str:
        """The tensor's."""
        return self.decision.name


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The same of several tensors together.

    Attributes:
        num_tensors: how many.
        num_quantized: how many of them are quantized.
        source_bytes: of all.
        output_bytes: of all.
        relative_error: of the quantized ones, as if they were one tensor.
        sqnr_db: of the same; infinite where there is no error.
        max_abs_error: the largest.
    """

    num_tensors: int
    num_quantized: int
    source_bytes: int
    output_bytes: int
    relative_error: float
    sqnr_db: float
    max_abs_error: float


def totals(errors: Iterable[TensorError]) -> Totals:
    """Sums over tensors."""
    measured = tuple(errors)
    weights = sum(e.weight_energy for e in measured)
    noise = sum(e.error_energy for e in measured)
    return Totals(
        num_tensors=len(measured),
        num_quantized=sum(e.decision.is_quantized for e in measured),
        source_bytes=sum(e.source_bytes for e in measured),
        output_bytes=sum(e.output_bytes for e in measured),
        relative_error=relative_error(weights, noise),
        sqnr_db=sqnr_db(weights, noise),
        max_abs_error=max((e.max_abs_error for e in measured), default=0.0),
    )


def tensor_errors(
    source: Source,
    output: Output | Scheme,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    memory_bytes: int | None = None,
    jobs: int = 4,
    progress: Callable[[int], None] = lambda _: None,
    started: Callable[[int], None] = lambda _: None,
) -> tuple[TensorError, ...]:
    """Quantize every tensor in memory, decode it, and measure the error.

    Strips of rows are read by several threads into buffers that `memory_bytes` bounds, whatever the model's
    size. The decoded weights are rounded to the checkpoint's dtype, as a runtime in that dtype does.

    Args:
        source: the checkpoint.
        output: a format; or a scheme, in the plain format or as DeepSpeed quantizes while it loads.
        include: as for `quantize.select.decide`.
        exclude: the same.
        memory_bytes: anonymous memory of the whole process; None: 512 MiB beside what it already has.
        jobs: threads.
        progress: told of bytes read, from any thread.
        started: told how many bytes will be read.

    Returns:
        One per tensor: the quantized ones, the worst relative error first; then those that stay, in order.

    Raises:
        UnsupportedSourceError: the checkpoint is quantized already.
        QuantizeError: a tensor cannot be quantized so.
        CheckpointError: the checkpoint cannot be read.
    """
    check_unquantized(source)
    chosen = output if isinstance(output, Output) else output_of(output)
    decisions = decide(source, include, exclude)
    config = chosen.config(source, decisions)
    names = set(quantized(decisions))
    # Sizes are looked at before the first byte is read: they say which tensors groups do not tile.
    empty = {name: _unmeasured(source, chosen, decision) for name, decision in decisions.items()}
    copies = [c for c in make_plan(source, source.tensors, ()) if c.name in names]
    started(sum(c.read_bytes for c in copies))

    def coder(name: str) -> RoundTrip:
        return round_trip(chosen, config, name, source.tensors[name])

    budget, _ = make_budget(memory_bytes, jobs, casts=False)
    stream = _Measuring(source, budget, coder, progress)
    for _ in stream.run(copies):
        pass
    measured = [_measured(error, stream.found.get(name)) for name, error in empty.items()]
    # The sort is stable: tensors that stay keep their order, as do equals.
    return tuple(sorted(measured, key=lambda e: (not e.decision.is_quantized, -e.relative_error)))


def round_trip(
    output: Output, config: Mapping[str, Any] | None, name: str, tensor: LogicalTensor
) -> RoundTrip:
    """What encodes the tensor called `name` by `output` and decodes it by `config`.

    Args:
        output: the format that encodes.
        config: its `quantization_config`, by which is decoded.
        name: the tensor's.
        tensor: its dtype and shape.
    """
    return RoundTrip(name, output.encoder(name, tensor), decoder(config, name, tensor))


def _unmeasured(source: Source, output: Output, decision: Decision) -> TensorError:
    tensor = source.tensors[decision.name]
    stored = output.derived(decision.name, tensor).values() if decision.is_quantized else (tensor,)
    return TensorError(
        decision=decision,
        dtype=tensor.dtype,
        shape=tensor.shape,
        source_bytes=_size_bytes(tensor),
        output_bytes=sum(map(_size_bytes, stored)),
    )


def _measured(error: TensorError, sums: Sums | None) -> TensorError:
    if sums is None:
        return error
    return msgspec.structs.replace(
        error,
        weight_energy=sums.weight_energy,
        error_energy=sums.error_energy,
        relative_error=relative_error(sums.weight_energy, sums.error_energy),
        sqnr_db=sqnr_db(sums.weight_energy, sums.error_energy),
        max_abs_error=sums.max_abs_error,
        num_nonfinite=sums.num_nonfinite,
    )


def _size_bytes(tensor: LogicalTensor) -> int:
    return dtype(tensor.dtype).itemsize_bytes * math.prod(tensor.shape)


class _Measuring(EncodingStream):
    """A stream that compares the weights with what they are decoded to.

    Attributes:
        found: tensor → its sums.
    """

    def __init__(
        self,
        source: Source,
        budget: Budget,
        coder: Callable[[str], RoundTrip],
        progress: Callable[[int], None],
    ) -> None:
        super().__init__(source.folder, _write_nothing, budget, encoder=coder, progress=progress)
        self.found: dict[str, Sums] = {}
        self._found_lock = threading.Lock()

    def copy_tensor(self, copy: TensorCopy, buffers: Buffers) -> Digests:
        coder, sums, sha = self.encoder(copy.name), Sums(), hashlib.sha256()
        longest = min(self.budget.strip_bytes // _SHARES, _STRIP_BYTES) // dtype(copy.dtype).itemsize_bytes
        boxes = list(row_strips(copy.shape, coder.rows, longest, copy.name))
        if coder.is_two_pass:
            for box in boxes:
                coder.observe(box, self.read_strip(copy, box, buffers)[0])
        for box in boxes:
            if self.is_stopped:
                break
            values, _ = self.read_strip(copy, box, buffers)
            sha.update(_bytes_of(values).data)
            for _, _, decoded in coder.encode(box, values):
                sums.add(*(blocks.view(_bytes_of(array), copy.dtype) for array in (values, decoded)))
            self.progress(values.nbytes)
        self.check_digest(copy, sha.hexdigest())
        with self._found_lock:
            self.found[copy.name] = sums
        return Digests(name=copy.name, source=sha.hexdigest(), target="")


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _write_nothing(file: str, offset: int, data: memoryview) -> None:
    raise AssertionError(
        f"a measurement writes nothing, but would write {len(data)} bytes to {file}:{offset}"
    )
