"""What one part of a probe hands back, and how a measurement that fails becomes a sentence."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from planner.probe.fits import LineFit, Measurement, average_over

#: Of an error's text, so that a sentence stays one.
_LONGEST: Final = 200
#: The series that says where a probe's time went.
_SECONDS: Final = "seconds that each measurement took"


class Findings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Filled while a part is measured, then written as JSON.

    Attributes:
        quantities: path in a profile's file, as in `gpu.context_bytes` → what was measured.
        facts: what is read and not measured: names and counts.
        series: name → label of a size or way → value; the details behind the quantities.
        missing: sentences about what could not be measured.
    """

    quantities: dict[str, Measurement] = {}
    facts: dict[str, str | int] = {}
    series: dict[str, dict[str, float]] = {}
    missing: list[str] = []

    def attempt(self, what: str, measure: Callable[["Findings"], None]) -> None:
        """Run one measurement; if it fails, what it would have found is missing, with the reason."""
        try:
            with self.clocked(what):
                measure(self)
        except Exception as error:  # drivers and libraries raise what they like
            first = str(error).strip().splitlines()
            said = first[0][:_LONGEST] if first else "no reason given"
            self.missing.append(f"{what} could not be measured: {type(error).__name__}: {said}")

    @contextmanager
    def clocked(self, what: str) -> Iterator[None]:
        """Note how long something takes, as a detail."""
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
        """A link's rate, and its latency where that has a path, from a line through averages over cores."""
        for place, value in ((path, line.bytes_per_s), (latency_path, line.latency_s)):
            if place is not None:
                self.quantities[place] = Measurement(
                    value=value,
                    spread=line.error,
                    num_samples=sum(len(one) for one in samples.values()),
                    method=how,
                    average=average_over(num_cores),
                )

    def merge(self, other: "Findings") -> None:
        """Take over everything of another part."""
        self.quantities.update(other.quantities)
        self.facts.update(other.facts)
        for name, values in other.series.items():
            self.series.setdefault(name, {}).update(values)
        self.missing.extend(other.missing)
