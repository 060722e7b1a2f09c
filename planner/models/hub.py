"""Fetches a model's configuration, and nothing else, from the Hugging Face hub or its local cache."""

from pathlib import Path
from typing import Final, NamedTuple

from planner.errors import ModelError

# Short, so that a user without a network soon gets an error message.
_TIMEOUT_S: Final = 10.0
_CONFIG: Final = "config.json"
_INSTEAD: Final = "use a shipped name (`planner models list`) or a local folder with a config.json"


class HubConfig(NamedTuple):
    """The text of a repository's `config.json`, and the commit that it was read at."""

    text: str
    revision: str


def fetch_config(hub_id: str, revision: str | None = None) -> HubConfig:
    """`config.json` of a repository; the local cache serves when there is no network.

    Args:
        hub_id: the repository, as `org/name`.
        revision: a commit, tag or branch; the default branch for None.

    Raises:
        ModelError: no such repository or file, no access, or no network and nothing cached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    obstacle = _obstacle(hub_id)
    try:
        file = hf_hub_download(
            hub_id,
            _CONFIG,
            revision=revision,
            etag_timeout=_TIMEOUT_S,
            local_files_only=obstacle is not None,
        )
        # The client keeps a file at snapshots/COMMIT/NAME.
        return HubConfig(Path(file).read_text(encoding="utf-8"), Path(file).parent.name)
    except HFValidationError as error:
        raise ModelError(f"{hub_id!r} is not a hub id: {error}") from error
    except GatedRepoError as error:
        raise ModelError(
            f"{hub_id} is gated on the hub: accept its licence there and log in, or {_INSTEAD}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub shows no model {hub_id}: check the spelling, log in if it is private, or {_INSTEAD}"
        ) from error
    # A subclass of EntryNotFoundError, so it is handled first: the hub was not reached at all.
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"the hub could not be reached ({obstacle or error}) and the {_CONFIG} of {hub_id} is not in the "
            f"local cache: go online, or {_INSTEAD}"
        ) from error
    except EntryNotFoundError as error:
        raise ModelError(f"the hub's repository {hub_id} has no {_CONFIG}: {_INSTEAD}") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"the hub did not give the {_CONFIG} of {hub_id} ({error}): {_INSTEAD}") from error


def _obstacle(hub_id: str) -> str | None:
    """Why the hub does not answer; None for any answer, errors included.

    Checked before the download, because the client retries for twenty seconds, and logs each attempt, before
    it raises.
    """
    from huggingface_hub import get_session, hf_hub_url

    try:
        get_session().head(hf_hub_url(hub_id, _CONFIG), timeout=_TIMEOUT_S)
    except Exception as error:  # the client's HTTP library, and so its exceptions, differ by release
        return str(error) or type(error).__name__
    return None
