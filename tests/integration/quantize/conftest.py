"""The work folder in memory that `reshard`'s tests have."""

from tests.integration.reshard.conftest import work

__all__ = ["work"]
