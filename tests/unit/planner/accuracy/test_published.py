"""The published rows and how they are run: complete, and nothing left out."""

from collections import Counter

import pytest

from planner.accuracy.compare import KINDS
from planner.accuracy.configurations import CONFIGURATIONS
from planner.accuracy.published import PublishedRow, rows
from planner.accuracy.setups import machine_file, setup_of, setups
from planner.accuracy.summary import TABLES
from planner.errors import BadFileError
from planner.hardware.load import load


def test_every_row_is_there() -> None:
    counts = Counter(row.model for row in rows())
    assert counts == {
        "GPT-J-6B": 10,
        "GPT-NeoX-20B": 10,
        "T0pp-11B": 5,
        "OPT-30B": 10,
        "BLOOM-176B": 43,
        "T5-11B": 9,
        "OPT-13B": 9,
    }


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.model}-{row.runtime}-{row.batch}-{row.metric}")
def test_every_row_is_priced_or_says_why_not(row: PublishedRow) -> None:
    setup = setup_of(row)
    assert row.metric in KINDS
    assert row.is_out_of_memory or float(row.value) >= 0
    assert bool(setup.reason) != bool(setup.configuration)
    if setup.configuration:
        assert setup.configuration in CONFIGURATIONS
        profile = load(machine_file(setup.machine))
        assert profile.num_gpus == int(row.n_gpus)
        assert setup.new_tokens == int(row.gen_len or setup.new_tokens)


def test_every_setup_has_a_row() -> None:
    used = {id(setup_of(row)) for row in rows()}
    assert used == {id(setup) for setup in setups()}


def test_a_row_of_no_setup_is_an_error() -> None:
    (row, *_) = rows()
    with pytest.raises(BadFileError, match="no setup covers the published row GPT-J-6B, none, fp16"):
        setup_of(PublishedRow(**{**{f: getattr(row, f) for f in row.__struct_fields__}, "runtime": "none"}))


def test_the_tables_of_the_requirement_have_times() -> None:
    for runtime in TABLES.values():
        assert any(row.runtime == runtime and KINDS[row.metric] == "time" for row in rows())
