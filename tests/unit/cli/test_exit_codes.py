"""Every error class has the status that the documentation promises."""

import errno
import inspect

import pytest

from cli.exit_codes import ExitCode, exit_code, is_foreseen
from planner import errors as planner_errors
from quantize import errors as quantize_errors
from reshard import errors as reshard_errors


def _instance(cls: type[Exception]) -> Exception:
    if cls is planner_errors.InfeasibleError:
        return planner_errors.InfeasibleError("short", device="gpu:0", deficit_bytes=1)
    if cls is quantize_errors.NonfiniteWeightError:
        return quantize_errors.NonfiniteWeightError(3)
    if cls is quantize_errors.ScaleOverflowError:
        return quantize_errors.ScaleOverflowError(3, "a limit")
    return cls("a sentence")


_EXPECTED = {
    "InfeasibleError": 1,
    "VerificationError": 1,
    "PlannerError": 3,
    "InvalidInputError": 3,
    "UnknownNameError": 3,
    "BadFileError": 3,
    "ModelError": 3,
    "ProfileError": 3,
    "PlanFileError": 3,
    "DeviceMapError": 3,
    "TraceError": 4,
    "RuntimeFailure": 4,
    "CheckpointError": 3,
    "UnknownDtypeError": 3,
    "MissingFileError": 3,
    "DamagedFileError": 3,
    "AmbiguousSourceError": 3,
    "UnknownArchitectureError": 3,
    "CannotSplitError": 3,
    "UnsupportedTargetError": 3,
    "InconsistentShardsError": 3,
    "OutputExistsError": 3,
    "DiskSpaceError": 3,
    "MemoryBudgetError": 3,
    "UnsupportedSourceError": 3,
    "QuantizeError": 3,
    "InvalidRequestError": 3,
    "InvalidSchemeError": 3,
    "GroupSizeError": 3,
    "UnsupportedBlockError": 3,
    "NonfiniteWeightError": 3,
    "ScaleOverflowError": 3,
    "UnknownPatternError": 3,
    "NothingToQuantizeError": 3,
    "EvaluationError": 4,
}


def test_every_error_class_has_its_status() -> None:
    classes = {
        name: cls
        for module in (planner_errors, quantize_errors, reshard_errors)
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Exception)
    }
    assert {name: int(exit_code(_instance(cls))) for name, cls in classes.items()} == _EXPECTED
    assert all(is_foreseen(_instance(cls)) for cls in classes.values())


@pytest.mark.parametrize(
    "error, expected",
    [
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (BrokenPipeError(), ExitCode.BROKEN_PIPE),
        (FileNotFoundError(errno.ENOENT, "No such file"), ExitCode.BAD_INPUT),
        (PermissionError(errno.EACCES, "Permission denied"), ExitCode.BAD_INPUT),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.RUNTIME_FAILURE),
        (ZeroDivisionError(), ExitCode.RUNTIME_FAILURE),
    ],
)
def test_other_errors(error: BaseException, expected: ExitCode) -> None:
    assert exit_code(error) is expected


def test_a_defect_is_not_foreseen() -> None:
    assert not is_foreseen(ZeroDivisionError())
