"""Whether a model has positions for what it is given."""

import msgspec
import pytest

from fixtures.graphs import layered_graph
from planner.errors import InvalidInputError
from planner.graph.model import Model


def model(**kind: object) -> Model:
    graph = msgspec.structs.replace(layered_graph(2), **{"max_positions": 100, **kind})
    return Model(name="tiny", auto_class="causal-lm", dtype=None, graph=graph)


@pytest.mark.parametrize(
    "kind, fits, too_long",
    [
        ({}, (90, 10), (91, 10)),
        # Its prompt and what it generates are sequences of their own.
        ({"is_encoder_decoder": True}, (100, 50), (101, 1)),
        # Nothing follows a masked model's prompt.
        ({"generates": False}, (100, 32), (101, 1)),
    ],
)
def test_the_prompt_and_what_follows_it_must_fit(
    kind: dict[str, bool], fits: tuple[int, int], too_long: tuple[int, int]
) -> None:
    model(**kind).check_lengths(*fits)
    with pytest.raises(InvalidInputError, match=f"up to 100 tokens; a prompt of {too_long[0]}"):
        model(**kind).check_lengths(*too_long)


def test_a_model_that_does_not_say_takes_any_length() -> None:
    model(max_positions=None).check_lengths(10**6, 10**6)
