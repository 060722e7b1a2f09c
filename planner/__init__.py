"""Where every weight and KV cache of a model should be, on which runtime and at which batch size.

    import planner

    model = planner.load_model("opt-30b")  # or a folder, or a hub id; no weights are read
    plan = planner.plan(model, "t4", planner.Request(batch_size=4, prompt_tokens=512))
    print(planner.explain(plan).headline)
    planner.emit(plan, "plans/opt30b")

Importing the package imports nothing else; a name is imported from its module when it is first used.
Every error that a user can mend is a `PlannerError`; the classes for single causes are in `planner.errors`.
Errors and notes name the fields of a request between backticks.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from planner.api import (
        compare,
        emit,
        explain,
        load_hardware,
        plan,
        predict,
        read_plan,
        save_report,
        verify,
        what_if,
    )
    from planner.errors import PlannerError
    from planner.graph.model import Model
    from planner.schema.hardware import HardwareProfile
    from planner.schema.plan import Plan
    from planner.schema.request import Request
    from planner.tracing.load import load_model

    __version__: str

__all__ = [
    "HardwareProfile",
    "Model",
    "Plan",
    "PlannerError",
    "Request",
    "__version__",
    "compare",
    "emit",
    "explain",
    "load_hardware",
    "load_model",
    "plan",
    "predict",
    "read_plan",
    "save_report",
    "verify",
    "what_if",
]

#: Module → what the package has of it.
_MODULES: Final = {
    "api": (
        "compare",
        "emit",
        "explain",
        "load_hardware",
        "plan",
        "predict",
        "read_plan",
        "save_report",
        "verify",
        "what_if",
    ),
    "errors": ("PlannerError",),
    "graph.model": ("Model",),
    "schema.hardware": ("HardwareProfile",),
    "schema.plan": ("Plan",),
    "schema.request": ("Request",),
    "tracing.load": ("load_model",),
}

# Hidden from type checkers, for which every name would exist.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from reshard.lazy import export

        return export(__name__, _MODULES, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
