"""Model directories: written whole or not at all, and identified by their weights."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf_core.errors import ModelError
from rlhf_core.models.compute import ADAPTER, as_in_files, unwrapped
from rlhf_core.models.dropout import as_published
from rlhf_core.models.known_ids import suppress_unknown_ids
from rlhf_core.models.library_output import hide_transformers_output
from rlhf_core.storage.folders import replacing_directory
from rlhf_core.storage.own_folders import OwnFolder, require_replaceable

MODEL = OwnFolder(
    "the model",
    is_ours=lambda folder: any(folder.glob("*config.json")) and any(folder.glob("*.safetensors")),
)

ADAPTER_FOLDER = "adapter"
"""Below the model, where transformers does not look: beside the weights it would merge it again."""


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, directory: Path) -> str:
    """Write model and tokenizer in ``save_pretrained`` layout; return the weights' sha256.

    The weights have the precision of the files that the model came from. Adapters that were merged
    into it lie in ``adapter/`` in PEFT's layout, for the model that training started from.

    The files are written beside ``directory`` under a temporary name, synced, then renamed: a
    crash leaves what was there before.

    Raises:
        DataError: something else than a model stands there.
        StorageError: the disk is full or refuses; names the file.
    """
    require_replaceable(directory, MODEL)
    with replacing_directory(directory) as temporary:
        with hide_transformers_output(), as_in_files(model), as_published(unwrapped(model)):
            suppress_unknown_ids(model)
            unwrapped(model).save_pretrained(temporary)
        _save_adapter(model, temporary / ADAPTER_FOLDER)
        tokenizer.save_pretrained(temporary)
        digest = weights_sha256(temporary)
        _readable_as_made(temporary)
    return digest


def _save_adapter(model: nn.Module, directory: Path) -> None:
    kept = getattr(unwrapped(model), ADAPTER, None)
    if kept is None:
        return
    config, tensors = kept
    directory.mkdir()
    config.save_pretrained(directory)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _readable_as_made(directory: Path) -> None:
    """Let everybody read the files who may read the folder: safetensors makes them its owner's."""
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(path.parent.stat().st_mode & 0o666)


def weights_sha256(directory: Path) -> str:
    """Return the sha256 over the bytes of all ``*.safetensors`` files, in name order.

    Raises:
        ModelError: there are none.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{directory}: no *.safetensors files")
    return files_sha256(files)


def files_sha256(files: Sequence[Path]) -> str:
    """Return the sha256 over the bytes of all files, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
