"""A model hub: where a folder is pushed to, and who licensed what it was made from."""

from pathlib import Path

from rlhf_core.adapters.settings import load_settings, without_credentials
from rlhf_core.errors import RegistryError


def push_folder(folder: Path, name: str, *, private: bool) -> str:
    """Push a model folder to the hub that ``HF_ENDPOINT`` names; return its address there.

    Args:
        folder: in ``save_pretrained`` layout, with its card.
        name: ``owner/name`` on the hub; made if it is not there.
        private: who may see it, where it is made.

    Raises:
        RegistryError: the hub refuses or does not answer.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    token = load_settings().hf_token
    api = HfApi(token=None if token is None else token.get_secret_value())
    where = without_credentials(constants.ENDPOINT)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"Export of {folder.name}"
        )
    except HFValidationError as error:
        raise RegistryError(f"--push {name}: expected owner/name: {_line(error)}") from error
    except OfflineModeIsEnabled as error:
        raise RegistryError(f"--push {name}: HF_HUB_OFFLINE is set; unset it to push") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "; set HF_TOKEN to a token that may write there" if status in (401, 403) else ""
        raise RegistryError(
            f"--push {name}: {where} answers {status}: {_line(error)}{advice}"
        ) from error
    except (HTTPError, OSError) as error:
        raise RegistryError(f"--push {name}: {where} cannot be reached: {_line(error)}") from error
    return f"{where}/{name}"


def license_of(base: str) -> str | None:
    """Return the licence that a base model's own card names, if it lies in a folder here."""
    from huggingface_hub import ModelCard

    card = Path(base) / "README.md"
    if not card.is_file():
        return None
    try:
        found = ModelCard.load(card).data.license
    except (ValueError, OSError):
        return None
    return found if isinstance(found, str) else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
