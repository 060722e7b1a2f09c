"""The runtimes by name. A new one is a package beside these and one line here."""

from collections.abc import Iterable
from typing import Final

from planner.cost.runtime_model import Law
from planner.errors import UnknownNameError
from planner.runtimes.accelerate.model import LAW as ACCELERATE
from planner.runtimes.cpu.model import LAW as CPU
from planner.runtimes.deepspeed_tp.model import LAW as DEEPSPEED_TP
from planner.runtimes.kernel_injection.model import LAW as KERNEL_INJECTION
from planner.runtimes.transformers_tp.model import LAW as TRANSFORMERS_TP
from planner.runtimes.zero_inference.model import LAW as ZERO_INFERENCE

#: The simplest first: of two that are as fast it is chosen.
LAWS: Final[dict[str, Law]] = {
    law.name: law
    for law in (CPU, ACCELERATE, ZERO_INFERENCE, DEEPSPEED_TP, KERNEL_INJECTION, TRANSFORMERS_TP)
}


def laws(names: Iterable[str] | None = None) -> tuple[Law, ...]:
    """The named runtimes' laws; all of them for None.

    Raises:
        UnknownNameError: a name that is none of them.
    """
    if names is None:
        return tuple(LAWS.values())
    unknown = [name for name in names if name not in LAWS]
    if unknown:
        raise UnknownNameError(f"unknown runtime {unknown[0]!r}; known are {', '.join(LAWS)}")
    return tuple(LAWS[name] for name in names)
