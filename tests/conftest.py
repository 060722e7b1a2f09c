"""What every test may count on: no network, no cache of the user's, no display."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest

_CACHE = tempfile.mkdtemp(prefix="planner-test-cache-")
# Read at import by the libraries, so set before any test module is loaded; child processes inherit them.
os.environ.update(
    {
        # A container's host name may lead nowhere; ranks talk over the loopback device.
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MPLBACKEND": "agg",
        "TOKENIZERS_PARALLELISM": "false",
        "PLANNER_CACHE_DIR": _CACHE,
    }
)


# A shell has what it starts in the background ignore Ctrl-C, which children inherit; tests send it to them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Each worker's cache goes with it."""
    shutil.rmtree(_CACHE, ignore_errors=True)


# Timings never decide a test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parent.parent
