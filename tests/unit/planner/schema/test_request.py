"""Requests that make no sense."""

import pytest

from planner.errors import InvalidInputError
from planner.schema.request import Request


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"prompt_tokens": 0, "dtype": "float16"},
        {"new_tokens": -3, "dtype": "float16"},
        {"max_latency_s": 0.0},
        {"objective": "speed"},
        {"dtype": "int3"},
        {"batch_size": 2, "min_batch": 4},
    ],
)
def test_senseless_requests_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        Request(**arguments).workload("float16")  # type: ignore[arg-type]
