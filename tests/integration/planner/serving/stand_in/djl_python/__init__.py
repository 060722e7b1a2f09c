"""Stands in for the Python side of DJL Serving, which comes inside its Java archive and in no package.

`Input` and `Output` have what an emitted handler calls, and behave as djl-serving's classes of these names do
(engines/python/setup/djl_python, 0.36.0): keys of a batch are `batch_000.data` on the way in and
`batch_0.data` on the way out. With `DJL_PYTHON` naming that setup folder of a checkout, the tests take the
real ones.
"""

import json
from typing import Any


class PairList:
    """Keys and bytes, in order."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str | None, bytes]] = []

    def add(self, key: str | None, value: bytes) -> None:
        """Append a pair."""
        self.pairs.append((key, value))

    def size(self) -> int:
        """How many."""
        return len(self.pairs)

    def key_at(self, index: int) -> str | None:
        """The key of one."""
        return self.pairs[index][0]

    def value_at(self, index: int) -> bytes:
        """The bytes of one."""
        return self.pairs[index][1]


class Input:
    """A request, or several as one."""

    def __init__(self) -> None:
        self.properties: dict[str, str] = {}
        self.content = PairList()

    def get_properties(self) -> dict[str, str]:
        """Of the model and of the request."""
        return self.properties

    def is_empty(self) -> bool:
        """True of the first call, which is there for loading."""
        return self.content.size() == 0

    def is_batch(self) -> bool:
        """Whether it is several."""
        return "batch_size" in self.properties

    def get_batches(self) -> list["Input"]:
        """Each request by itself."""
        if not self.is_batch():
            return [self]
        requests = [Input() for _ in range(int(self.properties["batch_size"]))]
        for key, value in self.properties.items():
            if key.startswith("batch_") and key != "batch_size":
                requests[int(key[6:9])].properties[key[10:]] = value
        for key_or_none, content in self.content.pairs:
            key = str(key_or_none)
            requests[int(key[6:9])].content.add(key[10:], content)
        return requests

    def get_as_json(self) -> Any:
        """The body."""
        return json.loads(self.content.value_at(0).decode())


class Output:
    """An answer, or several as one."""

    def __init__(self, code: int = 200) -> None:
        self.code = code
        self.properties: dict[str, str] = {}
        self.content = PairList()

    def set_code(self, code: int) -> "Output":
        """Set the HTTP status."""
        self.code = code
        return self

    def add_property(self, key: str, value: str) -> "Output":
        """Set a header."""
        self.properties[key] = value
        return self

    def add_as_json(self, value: Any, key: str | None = None, batch_index: int | None = None) -> "Output":
        """Add a body; with `batch_index`, that of one request among several."""
        if batch_index is not None:
            key = f"batch_{batch_index}.{key or ''}"
        self.content.add(key, json.dumps(value).encode())
        return self
