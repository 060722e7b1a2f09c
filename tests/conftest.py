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


@pytest.fixture
def chains_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph's placement units are computed once: a fit prices rows of two models a thousand times."""
    from planner.cost import runtime_model
    from planner.cost.placement_units import Chain
    from planner.graph.schema import ModuleGraph

    # By identity, and with the graph, so that no other takes its place: hashing a graph is as long a walk.
    computed: dict[int, tuple[ModuleGraph, tuple[tuple[str, ...], ...], Chain]] = {}
    find_units, find_chain = runtime_model.placement_units, runtime_model.chain_of

    def of(graph: ModuleGraph) -> tuple[ModuleGraph, tuple[tuple[str, ...], ...], Chain]:
        if id(graph) not in computed:
            groups = find_units(graph)
            computed[id(graph)] = graph, groups, find_chain(graph, groups)
        return computed[id(graph)]

    monkeypatch.setattr(runtime_model, "placement_units", lambda graph: of(graph)[1])
    monkeypatch.setattr(runtime_model, "chain_of", lambda graph, _: of(graph)[2])
