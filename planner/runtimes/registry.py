"""The runtimes by name. A new one is a package beside these and one line here."""

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

#: The simplest first: of two that are as fast it is chosen.
RUNTIME_MODELS: Final[dict[str, RuntimeModel]] = {
    runtime_model.name: runtime_model
    for runtime_model in (CPU, ACCELERATE, ZERO_INFERENCE, DEEPSPEED_TP, KERNEL_INJECTION, TRANSFORMERS_TP)
}


def runtime_models(names: Iterable[str] | None = None) -> tuple[RuntimeModel, ...]:
    """The named runtimes' laws; all of them for None.

    Raises:
        UnknownNameError: a name that is none of them.
    """
    if names is None:
        return tuple(RUNTIME_MODELS.values())
    unknown = [name for name in names if name not in RUNTIME_MODELS]
    if unknown:
        raise UnknownNameError(f"unknown runtime {unknown[0]!r}; known are {', '.join(RUNTIME_MODELS)}")
    return tuple(RUNTIME_MODELS[name] for name in names)
