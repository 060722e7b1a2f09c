"""Sizes as people write them: what is read, what is refused and how numbers are shown."""

import pytest

from planner.errors import InvalidInputError
from planner.sizes import (
    format_bytes,
    format_count,
    format_dollars,
    format_flops,
    format_rate,
    format_seconds,
    format_seconds_briefly,
    parse_bytes,
    parse_nvme,
    parse_rate,
)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("16GiB", 16 * 2**30),
        ("16 GiB", 16 * 2**30),
        ("16GB", 16 * 10**9),
        ("16gb", 16 * 10**9),
        ("500MB", 500 * 10**6),
        ("1.5TB", 1_500_000_000_000),
        ("0.1GB", 100_000_000),
        (".5KiB", 512),
        ("7B", 7),
        ("+1kB", 1000),
        ("2PiB", 2 * 2**50),
        # A float would give …993 - 1 here: 2^53 + 1.
        ("9007199254740993B", 9007199254740993),
    ],
)
def test_reads_bytes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text,words",
    [
        ("16", "has no unit; write 16GB or 16GiB"),
        ("16G", "could be 16GB or 16GiB"),
        ("16g", "could be 16GB or 16GiB"),
        ("16Gb", "is in bits; write bytes, as in 16GB"),
        ("10Gbit", "is in bits; write bytes, as in 10GB"),
        ("10Gib", "is in bits; write bytes, as in 10GiB"),
        ("16XB", "unknown unit 'XB'"),
        ("16GBB", "unknown unit"),
        ("16KiBi", "unknown unit"),
        ("0GB", "must be above zero"),
        ("0.4B", "must be above zero"),
        ("-4GiB", "must be above zero"),
        ("2000PB", "more than 1000 PB"),
        ("", "is not a size"),
        ("GB", "is not a size"),
        ("1,5GB", "is not a size"),
        ("1e9B", "is not a size"),
        ("nanGB", "is not a size"),
        ("٣GB", "is not a size"),
    ],
)
def test_refuses_sizes_with_a_sentence(text: str, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_bytes(text)
    assert words in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text,expected", [("3GB/s", 3e9), ("12 GB / s", 12e9), ("500MB/sec", 5e8), ("1GiB/s", 2.0**30)]
)
def test_reads_rates(text: str, expected: float) -> None:
    assert parse_rate(text) == expected


@pytest.mark.parametrize(
    "text,words",
    [
        ("3GB", "as in 3GB/s"),
        ("3", "as in 3GB/s"),
        ("10Gbps", "is in bits"),
        ("10Gb/s", "is in bits"),
        ("3/s", "has no unit"),
        ("0GB/s", "above zero"),
        ("-1GB/s", "above zero"),
        ("/s", "is not a size"),
    ],
)
def test_refuses_rates_with_a_sentence(text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        parse_rate(text)


def test_reads_an_nvme() -> None:
    assert parse_nvme("2TB@3GB/s") == (2 * 10**12, 3e9)
    assert parse_nvme(" 900 GB @ 1.8 GB/s ") == (900 * 10**9, 1.8e9)


@pytest.mark.parametrize(
    "text", ["2TB", "2TB@", "@3GB/s", "2TB@3GB", "0TB@3GB/s", "2TB@0GB/s", "2TB@3GB/s@1"]
)
def test_refuses_an_nvme(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_nvme(text)


@pytest.mark.parametrize(
    "num_bytes,expected",
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20 - 1, "1.0 MiB"),  # not 1024.0 KiB
        (16_000_000_000, "14.9 GiB"),
        (2**40, "1.0 TiB"),
        (-(2**31), "-2.0 GiB"),
    ],
)
def test_shows_bytes(num_bytes: int, expected: str) -> None:
    assert format_bytes(num_bytes) == expected


def test_shows_rates_flops_and_counts() -> None:
    assert format_rate(54.8e9) == "54.8 GB/s"
    assert format_rate(3.35e12) == "3.35 TB/s"
    assert format_rate(999.9e6) == "1.00 GB/s"
    assert format_flops(65e12) == "65.0 TFLOP"
    assert format_flops(989e12) == "989 TFLOP"
    assert format_count(6_050_882_784) == "6.05B"
    assert format_count(176_247_271_424) == "176B"
    assert format_count(124_439_808) == "124M"
    assert format_count(999) == "999"


@pytest.mark.parametrize(
    "seconds,expected",
    [
        (0, "0 s"),
        (250e-9, "250 ns"),
        (25e-6, "25.0 µs"),
        (0.064, "64.0 ms"),
        (0.9999, "1.00 s"),
        (1.768, "1.77 s"),
        (99.9, "99.9 s"),
        (99.96, "1 min 40 s"),
        (125, "2 min 05 s"),
        (3600, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_shows_seconds(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


def test_brief_times_have_one_unit() -> None:
    found = [format_seconds_briefly(s) for s in (0.0924, 59.9, 60, 374.2, 46620, 1e6, float("inf"))]
    assert found == ["92.4 ms", "59.9 s", "1 min", "6.24 min", "12.9 h", "278 h", "forever"]


@pytest.mark.parametrize(
    "dollars, expected",
    [
        (1234.5, "1,234.50"),
        (11.184, "11.18"),
        (1.0, "1.00"),
        (0.603, "0.603"),
        (0.004389, "0.00439"),
        (0, "0.00"),
    ],
)
def test_small_prices_keep_their_digits(dollars: float, expected: str) -> None:
    assert format_dollars(dollars) == expected
