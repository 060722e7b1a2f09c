"""The work folder in memory that `reshard`'s tests have, and torch without threads."""

from collections.abc import Iterator

import pytest
import torch

from tests.integration.reshard.conftest import work

__all__ = ["work"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower with threads, and by far so where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
