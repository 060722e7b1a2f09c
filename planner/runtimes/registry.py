"""The runtimes by name. A new runtime needs a package beside these and an entry in `RUNTIME_MODELS`."""

from collections.abc import Iterable
from typing import Final

from planner.cost.runtime_model import RuntimeModel
from planner.errors import UnknownNameError
from planner.runtimes.accelerate.model import RUNTIME_MODEL as ACCELERATE
from planner.runtimes.cpu.model import RUNTIME_MODEL as CPU
from planner.runtimes.deepspeed_tp.model import RUNTIME_MODEL as DEEPSPEED_TP
from planner.runtimes.kernel_injection.model import RUNTIME_MODEL as KERNEL_INJECTION
from planner.runtimes.transformers_tp.model import RUNTIME_MODEL as TRANSFORMERS_TP
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO_INFERENCE

#: The simplest first: of two equally fast ones the first is chosen.
RUNTIME_MODELS: Final[dict[str, RuntimeModel]] = {
    runtime_model.name: runtime_model
    for runtime_model in (CPU, ACCELERATE, ZERO_INFERENCE, DEEPSPEED_TP, KERNEL_INJECTION, TRANSFORMERS_TP)
}


def runtime_models(names: Iterable[str] | None = None) -> tuple[RuntimeModel, ...]:
    """The models of the named runtimes; of all runtimes for None.

    Raises:
        UnknownNameError: no runtime has one of the names.
    """
    if names is None:
        return tuple(RUNTIME_MODELS.values())
    unknown = [name for name in names if name not in RUNTIME_MODELS]
    if unknown:
        raise UnknownNameError(f"unknown runtime {unknown[0]!r}; known are {', '.join(RUNTIME_MODELS)}")
    return tuple(RUNTIME_MODELS[name] for name in names)
