"""Every error of the planner: one class per cause, each message a sentence for the user.

*Infeasible* is a result about valid input; *invalid input* and *damaged file* are not.
The command line maps the classes to exit codes (`cli/exit_codes.py`).
"""


class PlannerError(Exception):
    """Base class of the package."""


class InvalidInputError(PlannerError):
    """What the user asked for makes no sense: a bad size, a bad option, a bad combination."""


class UnknownNameError(InvalidInputError):
    """A model, profile, runtime or dtype that is not known; the message names the nearest."""


class BadFileError(PlannerError):
    """A file is missing, damaged, or contradicts what it should hold."""


class ModelError(BadFileError):
    """A model folder, configuration or checkpoint that cannot be used."""


class ProfileError(BadFileError):
    """A hardware profile that cannot be used."""


class PlanFileError(BadFileError):
    """A plan folder or plan.json that cannot be used."""


class DeviceMapError(BadFileError):
    """A device map that does not describe the model."""


class TraceError(PlannerError):
    """A model whose forward cannot be traced without weights."""


class InfeasibleError(PlannerError):
    """Nothing fits. `deficit_bytes` is the smallest number of bytes short, on `device`."""

    def __init__(self, message: str, *, device: str, deficit_bytes: int) -> None:
        super().__init__(message)
        self.device = device
        self.deficit_bytes = deficit_bytes


class VerificationError(PlannerError):
    """The emitted plan ran, but not as the plain model does."""


class RuntimeFailure(PlannerError):
    """A child process or a library failed while running a plan."""
