"""Reading what was written, for any size."""

from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InvalidInputError
from planner.sizes import format_bytes, format_rate, parse_bytes, parse_nvme, parse_rate

SIZES = st.integers(min_value=1, max_value=10**18)
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@given(number=st.integers(1, 10**6), unit=st.sampled_from(sorted(UNITS)), space=st.sampled_from(["", " "]))
def test_a_number_and_a_unit_are_their_product(number: int, unit: str, space: str) -> None:
    assert parse_bytes(f"{number}{space}{unit}") == number * UNITS[unit]


@given(SIZES)
def test_bytes_come_back_exactly(num_bytes: int) -> None:
    assert parse_bytes(f"{num_bytes}B") == num_bytes


@given(st.integers(min_value=1, max_value=10**17))
def test_shown_bytes_read_back_within_the_shown_digit(num_bytes: int) -> None:
    # One decimal of at least 1.0: off by at most 0.05 of it.
    assert abs(parse_bytes(format_bytes(num_bytes)) - num_bytes) <= 0.05 * num_bytes


@given(st.floats(min_value=1, max_value=1e17))
def test_shown_rates_read_back_within_three_digits(bytes_per_s: float) -> None:
    assert abs(parse_rate(format_rate(bytes_per_s)) - bytes_per_s) <= 0.0051 * bytes_per_s


@given(capacity=SIZES, rate=SIZES)
def test_an_nvme_is_a_size_and_a_rate(capacity: int, rate: int) -> None:
    assert parse_nvme(f"{capacity}B@{rate}B/s") == (capacity, float(rate))


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_sentence(text: str) -> None:
    message = ""
    try:
        num_bytes = parse_bytes(text)
    except InvalidInputError as error:
        num_bytes, message = 0, str(error)
    assert num_bytes > 0 or repr(text) in message
