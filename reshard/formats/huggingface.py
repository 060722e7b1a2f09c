"""`huggingface`: the merged checkpoint, as `save_pretrained` writes it; safetensors, or PyTorch's archives.

Source: transformers 5.23, `modeling_utils.py`; `shared` names are those of its save files.
"""

import json
from collections.abc import Mapping
from typing import Final

import msgspec

from reshard.checkpoint import INDEX, SINGLE, read_weight_map
from reshard.errors import AmbiguousSourceError, DamagedFileError
from reshard.lookup import find
from reshard.messages import shown
from reshard.model import Model
from reshard.storage import Folder
from reshard.tensors import LogicalTensor, StoredTensor, copy_of

from .base import Format, Layout, Options, Source, SourceFile, TargetFile, by_size
from .reading import contents, merged, model_of

_BIN_INDEX: Final = "pytorch_model.bin.index.json"
_BIN: Final = "pytorch_model.bin"


_NOTE: Final = "transformers, Accelerate and every runtime that takes a Hugging Face checkpoint loads it"


def _evidence(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in (SINGLE, INDEX, _BIN, _BIN_INDEX) if n in names)


def _read(folder: Folder, model: Model | None) -> Source:
    model = model_of(folder, model)
    files, notes = _files(folder)
    tensors: dict[str, LogicalTensor] = {}
    source_files, aliases = [], {}
    homes: dict[tuple[str, StoredTensor], str] = {}
    for file, wanted in files.items():
        held = {n: t for n, t in contents(folder, file).tensors.items() if not wanted or n in wanted}
        missing = sorted(set(wanted) - set(held))
        if missing:
            raise DamagedFileError(
                f"{folder.path(file)} lacks {shown(tuple(missing))}, which the index promises"
            )
        kept = []
        for name, stored in held.items():
            # A PyTorch archive keeps one copy of tensors that share their data.
            first = homes.setdefault((file, msgspec.structs.replace(stored, name="")), name)
            if first != name:
                aliases[name] = first
                continue
            if name in tensors:
                raise DamagedFileError(f"{folder.path(file)} has {name}, which another file has as well")
            tensors[name] = LogicalTensor(dtype=stored.dtype, shape=stored.shape)
            kept.append(merged(stored))
        source_files.append(SourceFile(name=file, tensors=tuple(kept)))
    _check_blocks(folder, model, tensors)
    return Source(
        format="huggingface",
        folder=folder,
        model=model,
        tensors=tensors,
        files=tuple(source_files),
        aliases=aliases,
        notes=notes,
    )


def _check_blocks(folder: Folder, model: Model, tensors: Mapping[str, LogicalTensor]) -> None:
    """An index that was cut short would pass for that of a smaller model."""
    if model.table is None or model.geometry is None:
        return
    places = [find(model.table, model, name) for name in tensors]
    present = {p[3][0] for p in places if p is not None and p[3] and p[3][0].isdecimal()}
    absent = [str(i) for i in range(model.geometry.layers) if str(i) not in present]
    if present and absent:
        raise DamagedFileError(
            f"{folder.path('')} has no tensors of block {shown(tuple(absent))}, where the configuration has "
            f"{model.geometry.layers} blocks; fetch what is missing"
        )


def _files(folder: Folder) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """File → the tensors that an index promises of it (none: whatever it holds); and notes."""
    names = folder.files()
    safe = [n for n in (SINGLE, INDEX) if n in names]
    archives = [n for n in (_BIN, _BIN_INDEX) if n in names]
    chosen = safe or archives
    if len(chosen) == 2:
        raise AmbiguousSourceError(
            f"{folder.path('')} holds both {chosen[0]} and {chosen[1]}: two checkpoints; remove one"
        )
    notes: tuple[str, ...] = ()
    if safe and archives:
        notes = (f"{shown(tuple(archives))} ignored: {safe[0]} is the same model, and safer to read",)
    if chosen[0] in (SINGLE, _BIN):
        return {chosen[0]: ()}, notes
    promised: dict[str, list[str]] = {}
    for tensor, file in read_weight_map(folder, chosen[0]).items():
        promised.setdefault(file, []).append(tensor)
    return {file: tuple(promised[file]) for file in sorted(promised)}, notes


def write_merged(tensors: Mapping[str, StoredTensor], longest_bytes: int) -> tuple[TargetFile, ...]:
    """Files as `save_pretrained` names them."""
    groups = by_size(tensors, longest_bytes)
    names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    return tuple(
        TargetFile(
            name=SINGLE if len(groups) == 1 else name,
            container="safetensors",
            tensors=group,
            metadata={"format": "pt"},
        )
        for name, group in zip(names, groups, strict=True)
    )


def index_of(files: tuple[TargetFile, ...]) -> bytes:
    """The index of several files."""
    total = sum(t.size_bytes for f in files for t in f.tensors)
    weights = {t.name: f.name for f in files for t in f.tensors}
    text = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}
    return (json.dumps(text, indent=2) + "\n").encode()


def _write(source: Source, options: Options) -> Layout:
    tensors = {name: copy_of(name, tensor) for name, tensor in source.tensors.items()}
    tensors |= {
        name: copy_of(first, source.tensors[first], stored_as=name) for name, first in source.aliases.items()
    }
    files = write_merged(tensors, options.max_shard_bytes)
    return Layout(
        format="huggingface",
        tp_size=1,
        files=files,
        side_files={INDEX: index_of(files)} if len(files) > 1 else {},
        notes=() if source.model.config.get("quantization_config") else (_NOTE,),
    )


FORMAT: Final = Format(
    name="huggingface",
    evidence=_evidence,
    read=_read,
    write=_write,
)
