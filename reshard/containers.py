"""Target files laid out before their data: headers, places of tensors, digests still pending. Pure."""

import json
import re
from typing import Final

import msgspec

from .checkpoint import METADATA
from .dtypes import dtype
from .formats.base import TargetFile
from .manifest import KEY
from .tensors import StoredTensor

#: Stands for a digest until it is known; as long as one, so that nothing moves when it is replaced.
_PENDING: Final = "pending-{:056d}"
_FIND_PENDING: Final = re.compile(rb"pending-(\d{56})")


def pending(number: int) -> str:
    """What stands in manifests in the place of digest `number`."""
    return _PENDING.format(number)


class LaidOutFile(msgspec.Struct, frozen=True, kw_only=True):
    """A target file with its tensors' places, and every byte of it that is not a tensor's.

    Attributes:
        file: the target.
        tensors: with offsets.
        size_bytes: of the whole file.
        parts: (offset in the file, bytes there), ascending; what lies between them is tensors' data.
    """

    file: TargetFile
    tensors: tuple[StoredTensor, ...]
    size_bytes: int
    parts: tuple[tuple[int, bytes], ...]

    @property
    def head(self) -> bytes:
        """What the file has before its tensors' data: all that `pending` can have marked."""
        at, raw = self.parts[0]
        return raw[: min((t.offset_bytes for t in self.tensors), default=self.size_bytes) - at]


def lay_out(file: TargetFile, manifest: str) -> LaidOutFile:
    """Everything of `file` but its tensors' data; `manifest` is what it says of itself."""
    if file.container == "safetensors":
        return _safetensors(file, manifest)
    # Only archives need torch.
    from .archives import lay_out_archive

    skeleton = lay_out_archive(
        file.name, file.tensors, manifest, root=file.root, extra=file.extra, lists=file.lists
    )
    return LaidOutFile(
        file=file,
        tensors=_placed(file.tensors, skeleton.offsets_bytes),
        size_bytes=skeleton.size_bytes,
        parts=skeleton.parts,
    )


def _safetensors(file: TargetFile, manifest: str) -> LaidOutFile:
    """Larger elements first, so that every tensor is aligned to its own; the order that the library uses."""
    order = sorted(range(len(file.tensors)), key=lambda i: -dtype(file.tensors[i].dtype).itemsize_bytes)
    header: dict[str, object] = {METADATA: {**file.metadata, KEY: manifest}}
    begins = [0] * len(file.tensors)
    at = 0
    for i in order:
        tensor = file.tensors[i]
        end = at + tensor.size_bytes
        header[tensor.name] = {
            "dtype": dtype(tensor.dtype).safetensors,
            "shape": list(tensor.stored_shape),
            "data_offsets": [at, end],
        }
        begins[i], at = at, end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    head = len(raw).to_bytes(8, "little") + raw
    return LaidOutFile(
        file=file,
        tensors=_placed(file.tensors, tuple(len(head) + begin for begin in begins)),
        size_bytes=len(head) + at,
        parts=((0, head),),
    )


def _placed(tensors: tuple[StoredTensor, ...], offsets: tuple[int, ...]) -> tuple[StoredTensor, ...]:
    return tuple(
        msgspec.structs.replace(tensor, offset_bytes=at) for tensor, at in zip(tensors, offsets, strict=True)
    )


def filled_in(raw: bytes, digests: list[str]) -> bytes:
    """`raw` with digests in the places that `pending` marked; other text of that form stays."""

    def digest(mark: re.Match[bytes]) -> bytes:
        number = int(mark[1])
        return digests[number].encode() if number < len(digests) else mark[0]

    return _FIND_PENDING.sub(digest, raw)
