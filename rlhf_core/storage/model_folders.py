"""What a model folder holds, told by its config.json: nothing is loaded for it."""

import json
from pathlib import Path

from rlhf_core.errors import ModelError
from rlhf_core.schema import ModelKind


def folder_kind(directory: Path) -> ModelKind:
    """Return what the model in a folder computes; ``save_model`` writes a head's ``reward_shift``.

    A reward model of somebody else has none, and so is taken for text here.

    Raises:
        ModelError: there is no such folder, or no model in it.
    """
    config = directory / "config.json"
    if not config.is_file():
        found = "no config.json in it" if directory.is_dir() else "no such folder"
        raise ModelError(
            f"{directory}: {found}; expected models:/<name>/<version>, models:/<name>@<alias> "
            "or a folder in save_pretrained layout"
        )
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{config}: cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{config}: expected an object, found {type(settings).__name__}")
    return "scalar" if "reward_shift" in settings else "causal"
