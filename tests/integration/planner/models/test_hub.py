"""What the hub's client may answer, and the sentence for each; no network is used."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

from planner.errors import ModelError
from planner.models.hub import fetch_config


def _answer(monkeypatch: pytest.MonkeyPatch, answer: Exception | str) -> list[dict[str, Any]]:
    """The hub answers every download with `answer`; the keyword arguments of the calls are returned."""
    calls: list[dict[str, Any]] = []

    def download(*_: Any, **kwargs: Any) -> str:
        calls.append(kwargs)
        if isinstance(answer, Exception):
            raise answer
        return answer

    session = SimpleNamespace(head=lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


def _http_error(error: Any) -> Exception:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=404, url="", text="")
    refused: Exception = error("refused", response=response)
    return refused


@pytest.mark.parametrize(
    "error, message",
    [
        (_http_error(GatedRepoError), "org/name is gated on the hub"),
        (_http_error(RepositoryNotFoundError), "the hub shows no model org/name"),
        (EntryNotFoundError("none"), "repository org/name has no config.json"),
        (OSError("disk full"), "did not give the config.json of org/name .disk full."),
    ],
)
def test_refusals(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    _answer(monkeypatch, error)
    with pytest.raises(ModelError, match=message):
        fetch_config("org/name")


def test_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "opt"}')
    calls = _answer(monkeypatch, str(snapshot / "config.json"))
    assert fetch_config("org/name", "main") == ('{"model_type": "opt"}', "0123abc")
    assert (calls[0]["local_files_only"], calls[0]["revision"]) == (False, "main")


def test_cache_serves_when_the_hub_is_not_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    calls = _answer(monkeypatch, str(tmp_path / "config.json"))

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=unreachable))
    assert fetch_config("org/name").text == "{}"
    assert calls[0]["local_files_only"] is True
