"""Models on Hugging Face's Hub: fetched by name, and put there. Needs huggingface_hub.

The library keeps what it fetched in its own cache, and honours HF_HOME, HF_TOKEN and
HF_HUB_OFFLINE. Only safetensors, JSON and text are fetched: nothing that runs code.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

from mogao_jax.errors import CheckpointError, EnvironmentProblem

_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "README.md"]


def is_name(text: str) -> bool:
    """Whether a text may name a model on the Hub ("org/name") and no place here."""
    return bool(_NAME.fullmatch(text)) and not pathlib.Path(text.split("/")[0]).exists()


def fetch(name: str) -> pathlib.Path:
    """The folder of a model on the Hub, from the local cache where it is there.

    Raises CheckpointError if it is not there or cannot be reached, EnvironmentProblem if
    huggingface_hub is not installed.
    """
    hub = _library(name)
    try:
        return pathlib.Path(hub.snapshot_download(name, allow_patterns=_FETCHED))
    except Exception as e:  # noqa: BLE001  (the library's, httpx's and the system's own)
        raise CheckpointError(
            f"there is no checkpoint {name!r} here, and it cannot be fetched from the Hub: "
            f"{_reason(e)}"
        ) from None


def push(folder: pathlib.Path, name: str, *, private: bool, message: str) -> str:
    """Puts a folder onto the Hub, making the model's page if there is none; returns its address.

    Raises CheckpointError if the Hub refuses it or cannot be reached, EnvironmentProblem if
    huggingface_hub is not installed.
    """
    hub = _library(name)
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        done = hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as e:  # noqa: BLE001
        raise CheckpointError(f"{str(folder)!r} was not pushed to {name!r}: {_reason(e)}") from None
    return str(getattr(done, "repo_url", None) or done)


def _library(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise EnvironmentProblem(
            f"{name!r} is no file or folder here. If it is a model on Hugging Face's Hub: pip "
            'install "mogao_jax[hub]"; else give another path.'
        ) from None
    return huggingface_hub


def _reason(error: Exception) -> str:
    """What went wrong, and what to do."""
    kind, first = type(error).__name__, (str(error).strip().splitlines() or [""])[0]
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return (
            "it is not in the local cache, and the Hub cannot be reached (is HF_HUB_OFFLINE set?). "
            "Fetch it once with a connection, or give a folder."
        )
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError"):
        return "there is no such model, or it is private (log in with `hf auth login`)."
    if kind in ("GatedRepoError", "LocalTokenNotFoundError", "HfHubHTTPError"):
        return f"{first} (log in with `hf auth login`, or set HF_TOKEN)"
    return f"{kind}: {first}"
