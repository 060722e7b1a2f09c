"""Every error of the planner: one class per cause. Messages are sentences for the user.

An infeasible plan is a valid result; invalid input and damaged files are not.
The command line maps the classes to exit codes (`cli/exit_codes.py`).
"""


class PlannerError(Exception):
    """Base class of the planner's errors."""


class InvalidInputError(PlannerError):
    """Input that is not valid: a size, an option, or a combination of options."""


class UnknownNameError(InvalidInputError):
    """A model, profile, runtime or dtype that is not known; the message names the nearest."""


class BadFileError(PlannerError):
    """A file that is missing, damaged, or inconsistent."""


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
    """No placement fits into the machine.

    Attributes:
        device: the device that lacks memory.
        deficit_bytes: the smallest number of bytes that it lacks.
    """

    def __init__(self, message: str, *, device: str, deficit_bytes: int) -> None:
        """Create the error.

        Args:
            message: a sentence for the user.
            device: the device that lacks memory.
            deficit_bytes: the smallest number of bytes that it lacks.
        """
        super().__init__(message)
        self.device = device
        self.deficit_bytes = deficit_bytes


class VerificationError(PlannerError):
    """The emitted plan ran, but its results differ from those of the plain model."""


class RuntimeFailure(PlannerError):
    """A child process or a library failed while running a plan."""
