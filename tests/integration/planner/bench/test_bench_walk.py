"""What `bench` does only where a GPU runs the plan: its thread is rotated over the cores between tokens."""

import time
from typing import Any

import pytest
import torch
import transformers

from fixtures.train import TRAINED
from planner.bench.ladder import _is_gpu_only, _RotatingClock


class Clock(transformers.LogitsProcessor):
    """As an emitted folder's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return scores


def test_a_rotating_clock_sees_every_token_and_changes_none() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(TRAINED).eval()
    moves: list[float] = []
    clock = _RotatingClock(Clock(), lambda: moves.append(time.perf_counter()))
    options: dict[str, Any] = {
        "max_new_tokens": 5,
        "min_new_tokens": 5,
        "do_sample": False,
        "pad_token_id": 0,
    }
    ids = torch.tensor([[7, 8, 9]])
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    rotated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=transformers.LogitsProcessorList([clock]),
        **options,
    )
    assert torch.equal(plain, rotated)
    assert len(clock.times) == len(moves) == 5
    # Each time is noted before the thread moves.
    assert all(noted <= moved for noted, moved in zip(clock.times, moves, strict=True))
    assert clock.times == sorted(clock.times)


def placement(stored_on: str, runs_on: str = "gpu:0") -> dict[str, str]:
    return {"module": "h", "stored_on": stored_on, "runs_on": runs_on}


@pytest.mark.parametrize(
    "main, placements, rotates",
    [
        ("gpu:0", [placement("gpu:0"), placement("cpu")], True),
        ("gpu:0", [placement("gpu:0"), placement("peers")], True),
        ("gpu:0", [placement("cpu", "cpu"), placement("gpu:0")], False),
        ("gpu:0", [placement("disk")], False),
        ("cpu", [placement("cpu", "cpu")], False),
        ("cpu", [placement("disk", "cpu")], False),
    ],
)
def test_it_rotates_where_no_other_thread_of_the_host_works(
    main: str, placements: list[dict[str, str]], rotates: bool
) -> None:
    assert _is_gpu_only({"execution": {"main": main}, "placements": placements}) is rotates
