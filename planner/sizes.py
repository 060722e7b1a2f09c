"""Parses sizes and rates, and formats numbers for display. Only the command line uses GB and GiB.

`GB` is 10⁹ bytes and `GiB` is 2³⁰. A number without a unit, `G` alone and bits (`Gb`) are refused, because
they are ambiguous.
"""

import re
from decimal import Decimal
from typing import Final

from planner.errors import InvalidInputError

_DECIMAL: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BINARY: Final = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}
_LIMIT_BYTES: Final = 10**18
_SIZE: Final = re.compile(r"\s*(?P<sign>[+-]?)(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>[A-Za-z]*)\s*", re.ASCII)
_PER_SECOND: Final = re.compile(r"\s*(?P<size>.*?)\s*(?P<per>/\s*s|/\s*sec|ps)?\s*", re.ASCII | re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """The bytes in `text`, as in `16GiB`, `500 MB` or `1.5TB`.

    Raises:
        InvalidInputError: not a number with a unit of bytes, not above zero, or more than 10¹⁸ bytes.
    """
    return int(_parse(text, text, example="16GiB"))


def parse_rate(text: str) -> float:
    """The bytes per second in `text`, as in `3GB/s`.

    Raises:
        InvalidInputError: as in `parse_bytes`, or without `/s` at the end.
    """
    match = _PER_SECOND.fullmatch(text)
    if match is None or match["per"] is None:
        raise InvalidInputError(f"{text!r} is not a rate; write bytes per second, as in 3GB/s")
    return float(_parse(match["size"], text, example="3GB/s"))


def parse_nvme(text: str) -> tuple[int, float]:
    """Capacity in bytes and read rate in bytes per second, as in `2TB@3GB/s`.

    Raises:
        InvalidInputError: not a size, `@` and a rate.
    """
    capacity, at, rate = text.partition("@")
    if not at:
        raise InvalidInputError(f"{text!r} does not describe an NVMe; write capacity@rate, as in 2TB@3GB/s")
    return parse_bytes(capacity), parse_rate(rate)


def format_bytes(num_bytes: float) -> str:
    """Bytes with a binary prefix and one decimal, as in `14.9 GiB`; whole bytes below 1 KiB."""
    if round(abs(num_bytes)) < 1024:
        return f"{round(num_bytes)} B"
    value, prefixes = num_bytes / 1024, "KMGTPE"
    index = 0
    # A value that would be rounded to 1024.0 takes the next prefix.
    while round(abs(value), 1) >= 1024 and index < len(prefixes) - 1:
        value, index = value / 1024, index + 1
    return f"{value:.1f} {prefixes[index]}iB"


def format_rate(bytes_per_s: float) -> str:
    """Bytes per second with a decimal prefix, as in `54.8 GB/s` (as datasheets and links are quoted)."""
    value, prefix = _scaled(bytes_per_s, ("", "k", "M", "G", "T", "P"))
    return f"{value} {prefix}B/s"


def format_flops(flops: float) -> str:
    """Floating-point operations with a decimal prefix, as in `65.0 TFLOP`; add `/s` for a rate."""
    value, prefix = _scaled(flops, ("", "k", "M", "G", "T", "P", "E"))
    return f"{value} {prefix}FLOP"


def format_count(count: float) -> str:
    """A count with three digits, as in model names: `774M`, `6.05B`, `1.02T`; exact below 1,000."""
    if abs(count) < 1000:
        return f"{count:g}"
    value, prefix = _scaled(count, ("", "K", "M", "B", "T", "Q"))
    return f"{value}{prefix}"


def format_seconds_briefly(seconds: float) -> str:
    """A time with three digits and one unit, for narrow columns: `92.4 ms`, `6.24 min`, `13 h`."""
    for limit, unit, size in ((60.0, "", 1.0), (3600.0, "min", 60.0), (float("inf"), "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}" if unit else format_seconds(seconds)
    return "forever"


def format_seconds(seconds: float) -> str:
    """A time with three digits, as in `25.0 µs`, `64.0 ms`, `1.77 s`; in minutes and hours above 100 s."""
    if seconds == 0:
        return "0 s"
    if abs(seconds) < 99.95:
        for factor, unit in ((1e9, "ns"), (1e6, "µs"), (1e3, "ms")):
            if abs(seconds) * factor < 999.5:
                return f"{_three_digits(seconds * factor)} {unit}"
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_dollars(dollars: float) -> str:
    """Dollars without the sign: with cents from one dollar on, else three digits: `11.18`, `0.00439`."""
    return f"{dollars:,.2f}" if dollars >= 1 or dollars <= 0 else f"{dollars:#.3g}"


def format_by_unit(name: str, number: float, *, plain: str = "g") -> str:
    """A number in the unit that its field's name states.

    Args:
        name: the field, as in `memory_bytes`; rates may be by dtype, as in `flops_per_s.float16`.
        number: its value, in the SI unit of the name.
        plain: format specification for a name that states no unit.
    """
    if "flops_per_s" in name:
        return f"{format_flops(number)}/s"
    if "_bytes_per_s" in name:
        return format_rate(number)
    if name.endswith("_bytes"):
        return format_bytes(number)
    return format_seconds(number) if name.endswith("_s") else f"{number:{plain}}"


def _parse(text: str, whole: str, *, example: str) -> Decimal:
    """The number of bytes in `text`; error messages quote `whole` and recommend `example`."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"{whole!r} is not a size; write a number and a unit, as in {example}")
    num_bytes = Decimal(match["number"]) * _factor(match["number"], match["unit"], whole, example)
    if match["sign"] == "-" or num_bytes < 1:
        raise InvalidInputError(f"{whole!r} must be above zero")
    if num_bytes > _LIMIT_BYTES:
        raise InvalidInputError(f"{whole!r} is more than 1000 PB; check the unit")
    return num_bytes


def _factor(number: str, unit: str, whole: str, example: str) -> int:
    if unit == "":
        raise InvalidInputError(f"{whole!r} has no unit; write {number}GB or {number}GiB (as in {example})")
    lower = unit.lower()
    if (unit[0].isupper() and unit.endswith("b")) or lower.endswith(("bit", "bits")):
        byte_unit = unit[0].upper() + ("iB" if lower[1:2] == "i" and unit.endswith("b") else "B")
        raise InvalidInputError(f"{whole!r} is in bits; write bytes, as in {number}{byte_unit}")
    if lower == "b":
        return 1
    prefix, is_binary = lower[0], lower[1:] == "ib"
    if is_binary and prefix in _BINARY:
        return _BINARY[prefix]
    if lower[1:] == "b" and prefix in _DECIMAL:
        return _DECIMAL[prefix]
    if lower in _BINARY:
        raise InvalidInputError(
            f"{whole!r} could be {number}{unit.upper()}B or {number}{unit.upper()}iB; write one of them"
        )
    raise InvalidInputError(
        f"{whole!r} has an unknown unit {unit!r}; write B, kB, MB, GB, TB, PB or KiB, MiB, GiB, TiB, PiB"
    )


def _scaled(value: float, prefixes: tuple[str, ...]) -> tuple[str, str]:
    """The value with three digits, and its prefix."""
    index = 0
    while abs(value) >= 999.5 and index < len(prefixes) - 1:
        value, index = value / 1000, index + 1
    return _three_digits(value), prefixes[index]


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if magnitude < 99.95 else f"{value:.0f}"
