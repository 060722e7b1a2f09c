"""A folder of DeepSpeed pre-shards: its index, and what one rank's files hold, without their data.

Format: `ds_inference_config.json` and the PyTorch archives that it names. Archives that this tool wrote carry
a manifest; those that DeepSpeed wrote do not.
"""

from pathlib import Path

import msgspec
import torch

from ..errors import DamagedFileError, InconsistentShardsError, MissingFileError
from ..formats.deepspeed_layout import INDEX_FILE
from ..manifest import Manifest, decode
from ..messages import shown
from ..pickles import ATTRIBUTE


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """`ds_inference_config.json`, without the `base_dir` that DeepSpeed's own saver writes.

    Attributes:
        type: `bloom`, or `ds_model` for every other family.
        checkpoints: `tp`, where file `m * tp_size + rank` is partition m of a rank, and `non_tp`.
        version: of the format.
        parallelization: always `tp`.
        tp_size: ranks that the blocks are cut for.
        dtype: of every tensor.
    """

    type: str
    checkpoints: dict[str, list[str]]
    version: float
    parallelization: str
    tp_size: int
    dtype: str

    def files_of(self, tp_rank: int) -> list[str]:
        """The files that a rank reads."""
        return [*self.checkpoints["tp"][tp_rank :: self.tp_size], *self.checkpoints.get("non_tp", [])]


def read_index(folder: Path) -> Index:
    """The folder's index, all of whose files are there and inside the folder.

    Raises:
        MissingFileError: no index, or a file that it names is not there.
        DamagedFileError: an index that DeepSpeed would misread.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; cut the checkpoint with format='deepspeed'")
    try:
        index = msgspec.json.decode(path.read_bytes(), type=Index)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise DamagedFileError(f"{path} is no index of pre-shards: {error}") from error
    tp_files = index.checkpoints.get("tp", [])
    if index.tp_size < 1 or not tp_files or len(tp_files) % index.tp_size:
        raise DamagedFileError(
            f"{path} lists {len(tp_files)} files for tp_size {index.tp_size}; a multiple of it is needed"
        )
    if index.parallelization != "tp" or index.type not in ("bloom", "ds_model"):
        raise DamagedFileError(
            f"{path} has type {index.type!r} and parallelization {index.parallelization!r}; DeepSpeed reads "
            "'bloom' or 'ds_model', and 'tp'"
        )
    names = [*tp_files, *index.checkpoints.get("non_tp", [])]
    if outside := [name for name in names if Path(name).name != name]:
        raise DamagedFileError(f"{path} names {outside[0]!r}; only files of its own folder are read")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise MissingFileError(f"{folder} lacks {shown(missing)}, named in {INDEX_FILE}; write it again")
    return index


def check_rank(
    folder: Path, index: Index, tp_rank: int, needed: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    """Compare what one rank's files hold with what the model needs.

    Args:
        folder: where the files are.
        index: the folder's.
        tp_rank: the rank.
        needed: key → shape of every tensor on that rank.
        dtype: of every tensor.

    Raises:
        DamagedFileError: a file that is no archive of tensors.
        InconsistentShardsError: files of another set, rank, model or dtype; a key too few or too many.
    """
    stored: dict[str, tuple[int, ...]] = {}
    manifests: dict[str, Manifest | None] = {}
    for file in index.files_of(tp_rank):
        tensors = open_tensors(folder / file)
        raw = getattr(tensors, ATTRIBUTE, None)
        manifests[file] = None if raw is None else decode(raw, str(folder / file))
        _check_file(folder / file, tensors, needed, dtype)
        stored |= {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    _check_manifests(folder, manifests, index, tp_rank)
    if missing := sorted(needed.keys() - stored.keys()):
        raise InconsistentShardsError(f"{folder} lacks {shown(missing)}; write it again")
    if strange := sorted(stored.keys() - needed.keys()):
        raise InconsistentShardsError(
            f"{folder} holds {shown(strange)}, which the model of config.json lacks"
        )
    if wrong := [key for key, shape in needed.items() if stored[key] != shape]:
        raise InconsistentShardsError(
            f"{folder} holds {wrong[0]} of shape {list(stored[wrong[0]])}, and the model of config.json "
            f"needs {list(needed[wrong[0]])} on a rank; the shards are of another model or degree"
        )


def open_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one archive, mapped, not read. Nothing but tensors is unpickled.

    Raises:
        DamagedFileError: no archive of tensors by name.
    """
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # any error of torch's zip reader, of its unpickler or of the system
        raise DamagedFileError(f"{path} is no file of tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(value, torch.Tensor) for value in tensors.values()
    ):
        raise DamagedFileError(f"{path} holds more than tensors by name; int8 pre-shards are not loaded")
    return tensors


def dtype_name(dtype: torch.dtype) -> str:
    """As the index has it: `float16`."""
    return str(dtype).removeprefix("torch.")


def _check_file(
    path: Path, tensors: dict[str, torch.Tensor], needed: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    # DeepSpeed finds a module by either of its keys, and then takes both from the same file.
    weights = (key.removesuffix(".bias") + ".weight" for key in tensors if key.endswith(".bias"))
    if torn := [key for key in weights if key in needed and key not in tensors]:
        raise InconsistentShardsError(
            f"{path} holds a bias but not {torn[0]}, and DeepSpeed reads both from one file; cut the "
            "checkpoint again with format='deepspeed'"
        )
    if wrong := [key for key, tensor in tensors.items() if tensor.dtype != dtype]:
        raise InconsistentShardsError(
            f"{path} holds {wrong[0]} in {dtype_name(tensors[wrong[0]].dtype)}, and {INDEX_FILE} says "
            f"{dtype_name(dtype)}; write the folder again"
        )


def _check_manifests(folder: Path, manifests: dict[str, Manifest | None], index: Index, tp_rank: int) -> None:
    """Compare what the files say of themselves. Every rank reads the file of whole tensors, so all agree."""
    told = {file: manifest for file, manifest in manifests.items() if manifest is not None}
    if told and (silent := sorted(manifests.keys() - told.keys())):
        raise InconsistentShardsError(f"{folder} holds {shown(silent)} of another set: it has no manifest")
    for file, manifest in told.items():
        if manifest.tp_size != index.tp_size or manifest.tp_rank not in (None, tp_rank):
            raise InconsistentShardsError(
                f"{folder / file} was written for rank {manifest.tp_rank} of tp_size={manifest.tp_size}, but "
                f"rank {tp_rank} of {index.tp_size} would load it; it was renamed, or is of another set"
            )
    if len({(manifest.origin.sha256, manifest.files) for manifest in told.values()}) > 1:
        raise InconsistentShardsError(f"{folder} mixes shards of several checkpoints; write it again")
