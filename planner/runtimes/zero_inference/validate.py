"""What DeepSpeed would reject in a configuration, and what it would ignore without a message.

DeepSpeed checks some blocks strictly, and reads from all others only the keys that it knows. Those keys are
not listed anywhere, so they are recorded: DeepSpeed parses a dictionary that records which keys are read.
"""

import contextlib
import difflib
import io
import os
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from planner.errors import InvalidInputError
from planner.runtimes.quiet_logs import silent
from planner.runtimes.zero_inference.sizes import MIN_SWAPPED_BYTES

#: Keys that DeepSpeed reads only where ranks are running.
_ASKED_LATER: Final = frozenset({"bfloat16", "data_parallel_size", "sequence_parallel_size"})

#: DeepSpeed's classes of the blocks that it checks strictly → the blocks.
_BLOCKS: Final = {
    "DeepSpeedZeroConfig": "zero_optimization",
    "DeepSpeedZeroOffloadParamConfig": "zero_optimization.offload_param",
    "DeepSpeedFP16Config": "fp16",
    "DeepSpeedBF16Config": "bf16",
    "WeightQuantConfig": "weight_quantization",
}

_MICRO, _BATCH, _STEPS = "train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One problem of a configuration.

    Attributes:
        kind: `rejected` (DeepSpeed stops with an error), `ignored` (without a message) or `harmful`
            (accepted, with an error or a wrong effect later).
        sentence: the problem and what to do about it.
    """

    kind: str
    sentence: str


def problems(config: dict[str, Any], *, num_ranks: int = 1) -> list[str]:
    """All problems of a configuration for ZeRO-Inference, a sentence each; see `findings`.

    Raises:
        InvalidInputError: DeepSpeed is not installed.
    """
    return [finding.sentence for finding in findings(config, num_ranks=num_ranks)]


def findings(config: dict[str, Any], *, num_ranks: int = 1) -> list[Finding]:
    """All problems of a configuration for ZeRO-Inference, with their kinds.

    Args:
        config: the configuration as parsed JSON.
        num_ranks: processes that will run it; the batch keys must agree with it.

    Raises:
        InvalidInputError: DeepSpeed is not installed.
    """
    with _quiet_deepspeed():
        return [
            *_batch(config, num_ranks),
            *_rejected(config),
            *_unasked(config),
            *_aio(config.get("aio")),
            *_zero(config),
        ]


def zero_block(config: dict[str, Any]) -> Any:
    """The block `zero_optimization` as DeepSpeed reads it, with its defaults.

    Raises:
        InvalidInputError: DeepSpeed is not installed, or rejects the block.
    """
    with _quiet_deepspeed():
        from deepspeed.runtime.zero.config import get_zero_config

        try:
            return get_zero_config(config)
        except ValueError as error:
            raise InvalidInputError(f"zero_optimization: {error}") from error


class _Asked(dict[str, Any]):
    """A dictionary that records which of its keys are read, and whether all of it is read."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.asked: set[str] = set()
        self.is_taken_whole = False

    def __copy__(self) -> "_Asked":
        return self

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self

    def items(self) -> Any:
        self.is_taken_whole = True
        return super().items()

    def __iter__(self) -> Iterator[str]:
        self.is_taken_whole = True
        return super().__iter__()


def _parse(config: dict[str, Any]) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    DeepSpeedConfig(config)


def _asked_in(block: str | None) -> set[str] | None:
    """Keys that DeepSpeed reads at the top (None), or in a block; None if it reads all of the block."""
    inside = _Asked({})
    top = _Asked({_MICRO: 1} if block is None else {_MICRO: 1, block: inside})
    # DeepSpeed may fail at an empty block; the keys that it read before are those that it knows.
    with contextlib.suppress(Exception):
        _parse(top)
    if block is None:
        return top.asked | _ASKED_LATER
    return None if inside.is_taken_whole or not inside.asked else inside.asked


def _unasked(config: dict[str, Any]) -> Iterable[Finding]:
    known = _asked_in(None) or set()
    for key, value in config.items():
        if key not in known:
            yield _ignored(key, "", known)
        elif isinstance(value, dict):
            inner = _asked_in(key)
            if inner is not None:
                yield from (_ignored(name, f" in {key!r}", inner) for name in value if name not in inner)


def _ignored(key: str, where: str, known: Iterable[str]) -> Finding:
    return Finding(
        kind="ignored", sentence=f"DeepSpeed ignores {key!r}{where} without a message{_nearest(key, known)}"
    )


def _nearest(key: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else "; it knows no such key"


def _rejected(config: dict[str, Any]) -> Iterable[Finding]:
    """Errors of DeepSpeed's parser: all errors of a block that is checked strictly, else the first one."""
    from pydantic import ValidationError

    given = dict(config)
    if given.get(_MICRO) is not None:
        # DeepSpeed checks their product with the number of ranks, which is 1 in this process.
        given.pop(_BATCH, None)
    if isinstance(given.get("aio"), dict):
        # With this key DeepSpeed asserts that the machine has a GPU.
        given["aio"] = {name: value for name, value in given["aio"].items() if name != "use_gds"}
    try:
        _parse(given)
    except ValidationError as error:
        for details in error.errors():
            yield _strict(error.title, details)
    # DeepSpeed raises exceptions of many classes, each of which is a rejection.
    except Exception as error:
        yield Finding(kind="rejected", sentence=f"DeepSpeed rejects it: {error or type(error).__name__}")


def _strict(title: str, error: Any) -> Finding:
    """A pydantic error of a strict block as a finding."""
    *path, name = [str(part) for part in error["loc"]] or [""]
    where = ".".join([_BLOCKS.get(title, title), *path, name])
    if error["type"] == "extra_forbidden":
        return Finding(
            kind="rejected", sentence=f"DeepSpeed rejects {where}{_nearest(name, _fields(title, path))}"
        )
    return Finding(
        kind="rejected", sentence=f"DeepSpeed rejects {where} = {error['input']!r}: {error['msg']}"
    )


def _fields(title: str, path: list[str]) -> set[str]:
    """Keys of a strict block and their aliases."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadParamConfig

    classes = {model.__name__: model for model in DeepSpeedConfigModel.__subclasses__()}
    block = DeepSpeedZeroOffloadParamConfig if path == ["offload_param"] else classes.get(title)
    fields = {} if block is None else block.model_fields
    return {name for key, field in fields.items() for name in (key, field.alias) if name}


def _batch(config: dict[str, Any], num_ranks: int) -> Iterable[Finding]:
    micro, batch, steps = config.get(_MICRO), config.get(_BATCH), config.get(_STEPS, 1)
    if not (isinstance(micro, int) and isinstance(batch, int) and isinstance(steps, int)):
        return
    if batch != micro * steps * num_ranks:
        yield Finding(
            kind="rejected",
            sentence=(
                f"{_BATCH} is {batch}, and {_MICRO} {micro} × {_STEPS} {steps} × {num_ranks} ranks are "
                f"{micro * steps * num_ranks}; leave {_BATCH} out"
            ),
        )


def _aio(block: Any) -> Iterable[Finding]:
    """Values of a wrong type: DeepSpeed accepts them, and fails or misreads them at the first write."""
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    if block is None:
        return
    if not isinstance(block, dict):
        yield Finding(kind="rejected", sentence=f"aio is {block!r}; it must be an object")
        return
    for name, default in AIO_DEFAULT_DICT.items():
        value = block.get(name, default)
        if type(value) is not type(default) or (type(value) is int and value < 1):
            wanted = "true or false" if isinstance(default, bool) else "a whole number above 0"
            yield Finding(
                kind="harmful",
                sentence=f"aio.{name} is {value!r}, which DeepSpeed does not check; it must be {wanted}",
            )


def _zero(config: dict[str, Any]) -> Iterable[Finding]:
    """Settings that DeepSpeed accepts and that have another effect than their names suggest."""
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict) or zero.get("stage") != 3:
        yield Finding(
            kind="harmful",
            sentence="zero_optimization.stage is not 3: every GPU has the whole model, nothing is offloaded",
        )
        return
    if zero.get("offload_optimizer"):
        yield Finding(
            kind="ignored", sentence="offload_optimizer does nothing without an optimizer; leave it out"
        )
    offload = zero.get("offload_param")
    if not isinstance(offload, dict) or offload.get("device") != "nvme":
        return
    if not offload.get("nvme_path"):
        yield Finding(
            kind="harmful",
            sentence="offload_param.device is nvme and nvme_path is missing: DeepSpeed fails when it starts",
        )
    kept = zero.get("stage3_param_persistence_threshold", 0)
    itemsize = 2 if any((config.get(name) or {}).get("enabled") for name in ("fp16", "bf16")) else 4
    if isinstance(kept, int) and kept * itemsize >= MIN_SWAPPED_BYTES:
        yield Finding(
            kind="harmful",
            sentence=(
                f"stage3_param_persistence_threshold {kept} keeps parameters that are stored on NVMe, and "
                f"each of them occupies a buffer permanently; set it below {MIN_SWAPPED_BYTES // itemsize}"
            ),
        )


@contextlib.contextmanager
def _quiet_deepspeed() -> Iterator[None]:
    """Import DeepSpeed without output and, as it only parses configurations, for the CPU; silence its log."""
    given = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = given or "cpu"
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import deepspeed  # noqa: F401
    except ImportError as error:
        raise InvalidInputError("checking a ds_config needs DeepSpeed; pip install deepspeed") from error
    finally:
        # DeepSpeed reads it once, at the import; a child process that inherited it would not use its GPU.
        if given is None:
            del os.environ["DS_ACCELERATOR"]
    with silent("DeepSpeed"):
        yield
