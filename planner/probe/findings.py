"""The results of a probe's parts; a failed measurement becomes a sentence in them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from planner.probe.fits import LineFit, Measurement, average_over

#: Longest excerpt of an error's text, in characters.
_LONGEST: Final = 200
#: Name of the series with the duration of each measurement.
_SECONDS: Final = "seconds that each measurement took"


class Findings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The results of one or more parts, filled during the measurement and written as JSON.

    Attributes:
        quantities: path in a profile's file, such as `gpu.context_bytes` → measurement.
        facts: values that are read from the system instead of measured: names and counts.
        series: name → label (a size or configuration) → value; details behind the quantities.
        missing: sentences about quantities that could not be measured.
    """

    quantities: dict[str, Measurement] = {}
    facts: dict[str, str | int] = {}
    series: dict[str, dict[str, float]] = {}
    missing: list[str] = []

    def attempt(self, what: str, measure: Callable[["Findings"], None]) -> None:
        """Run one measurement; when it fails, note in `missing` that it failed and why."""
        try:
            with self.clocked(what):
                measure(self)
        except Exception as error:  # drivers and libraries raise errors of many types
            lines = str(error).strip().splitlines()
            reason = lines[0][:_LONGEST] if lines else "no reason given"
            self.missing.append(f"{what} could not be measured: {type(error).__name__}: {reason}")

    @contextmanager
    def clocked(self, what: str) -> Iterator[None]:
        """Record the duration of the `with` block in `series`, under the name `what`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.series.setdefault(_SECONDS, {})[what] = time.perf_counter() - start

    def record_line(
        self,
        path: str,
        line: LineFit,
        samples: Mapping[int, Sequence[float]],
        how: str,
        *,
        num_cores: int = 1,
        latency_path: str | None = None,
    ) -> None:
        """Record a link's rate, and optionally its latency, from a fitted line.

        Args:
            path: path of the rate (bytes per second) in a profile's file.
            line: line through the averages of `samples` over the cores.
            samples: size of a copy in bytes → seconds of its runs.
            how: method of the measurement, in words.
            num_cores: cores over which the samples are averaged.
            latency_path: path of the latency (seconds) in a profile's file; None: it is not recorded.
        """
        for place, value in ((path, line.bytes_per_s), (latency_path, line.latency_s)):
            if place is not None:
                self.quantities[place] = Measurement(
                    value=value,
                    spread=line.error,
                    num_samples=sum(len(seconds) for seconds in samples.values()),
                    method=how,
                    average=average_over(num_cores),
                )

    def merge(self, other: "Findings") -> None:
        """Add the results of another part to these."""
        self.quantities.update(other.quantities)
        self.facts.update(other.facts)
        for name, values in other.series.items():
            self.series.setdefault(name, {}).update(values)
        self.missing.extend(other.missing)
