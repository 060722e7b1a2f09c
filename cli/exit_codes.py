"""What a process status means, and which error leads to which."""

from enum import IntEnum

from planner.errors import InfeasibleError, PlannerError, RuntimeFailure, TraceError, VerificationError
from quantize.errors import EvaluationError
from reshard.errors import CheckpointError

from .termination import Terminated


class ExitCode(IntEnum):
    """Status of the process.

    `USAGE` is a command line that cannot be parsed; `BAD_INPUT` one that was understood, but what it names
    is unknown, damaged or makes no sense. The last three follow the shells' 128 + signal.
    """

    OK = 0
    NEGATIVE_RESULT = 1
    USAGE = 2
    BAD_INPUT = 3
    RUNTIME_FAILURE = 4
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


#: Errors of the operating system that a path given by the user explains; a full disk is not one.
_BAD_PATH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def exit_code(error: BaseException) -> ExitCode:
    """The status for `error`; what nobody foresaw is a runtime failure."""
    match error:
        case InfeasibleError() | VerificationError():
            return ExitCode.NEGATIVE_RESULT
        case RuntimeFailure() | TraceError() | EvaluationError():
            return ExitCode.RUNTIME_FAILURE
        case PlannerError() | CheckpointError():
            return ExitCode.BAD_INPUT
        case Terminated():
            return ExitCode.TERMINATED
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case BrokenPipeError():
            return ExitCode.BROKEN_PIPE
        case OSError():
            return ExitCode.BAD_INPUT if isinstance(error, _BAD_PATH) else ExitCode.RUNTIME_FAILURE
        case _:
            return ExitCode.RUNTIME_FAILURE


def is_foreseen(error: BaseException) -> bool:
    """Whether the error's own message is a sentence for the user; otherwise it is a defect of this tool."""
    return isinstance(error, PlannerError | CheckpointError | OSError)
