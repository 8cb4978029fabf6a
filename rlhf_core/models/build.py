"""Pretrained models ready for packed batches, whatever their head is for."""

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import PreTrainedModel

from rlhf_core.errors import ModelError, RlhfError
from rlhf_core.models.attention import PACKED, register_packed_attention
from rlhf_core.models.compute import FILES, HALVES
from rlhf_core.models.device import choose_device
from rlhf_core.models.dropout import switch_off_dropout, without_dropout
from rlhf_core.models.last_layer import prune_last_layer
from rlhf_core.models.library_output import hide_transformers_output
from rlhf_core.models.memory import dtype_of_files, require_memory
from rlhf_core.models.text import freeze_towers, text_trunk
from rlhf_core.tokenization.model_folder import loading_options, why_not_loaded


@contextmanager
def loading(base: str | Path, what: str) -> Iterator[None]:
    """Turn what transformers raises at a model into one line, and keep it from printing.

    Args:
        base: directory in ``save_pretrained`` layout, or a hub name.
        what: it is to be loaded as.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        with hide_transformers_output():
            yield
    except RlhfError:
        raise
    except Exception as error:  # a damaged folder makes its libraries raise what they like
        raise ModelError(f"{base}: cannot load {what}: {_reason(base, error)}") from error


def require_plain_weights(base: str | Path) -> None:
    """Refuse weights that ``build_model`` would for being a damaged pickle, or more than tensors.

    The names in the pickle are read, no weight is; a pickle from before PyTorch 1.6 is left to
    ``build_model``. To be asked within ``loading``.

    Args:
        base: directory in ``save_pretrained`` layout; of a hub name nothing is known.

    Raises:
        pickle.UnpicklingError: it holds more than tensors.
        Exception: what PyTorch raises at one that is damaged.
    """
    folder = Path(base)
    if any(folder.glob("*.safetensors")):
        return
    for file in sorted(folder.glob("pytorch_model*.bin")):
        with file.open("rb") as stream:
            is_of_now = stream.read(len(_ZIP)) == _ZIP
        if is_of_now and get_unsafe_globals_in_checkpoint(file):
            raise pickle.UnpicklingError(file)


def build_model(  # noqa: PLR0913 - each of them changes what is loaded, none groups
    auto_class: Any,
    base: str | Path,
    what: str,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    revision: str | None = None,
    may_lack: tuple[str, ...] = (),
    **changes: Any,
) -> PreTrainedModel:
    """Build a model on its device, dropout off; whether it can be trained is the caller's to ask.

    Args:
        auto_class: with the ``from_pretrained`` of transformers' auto classes.
        base: directory in ``save_pretrained`` layout, or a hub name.
        what: as what it is loaded, for the error.
        dtype: of the weights.
        device: as ``model.device``.
        revision: hub revision; ignored for a directory.
        may_lack: weights that need not be there, for the caller fills them.
        changes: what differs from the model's own configuration.

    Raises:
        ConfigError: the device is not there.
        ModelError: it cannot be loaded, does not fit into memory, or weights are missing:
            transformers would train random numbers in their place.
    """
    register_packed_attention()
    place = choose_device(device)
    options = loading_options(base, revision)
    require_memory(base, dtype, place)
    with loading(base, what):
        config = without_dropout(base, revision)
        config.update(changes)
        own_dtype = _file_dtype(base, config)
        model, loaded = _load(auto_class, str(base), {**options, "config": config, "dtype": dtype})
    if problem := _incomplete(loaded, may_lack):
        raise ModelError(f"{base}: cannot load {what}: {problem}")
    model.to(place)
    switch_off_dropout(model)
    prune_last_layer(text_trunk(model))
    freeze_towers(model)
    if own_dtype in HALVES:
        setattr(model, FILES, own_dtype)
    built: PreTrainedModel = model
    return built


def _incomplete(loaded: dict[str, Any], may_lack: tuple[str, ...]) -> str | None:
    """Say which weights transformers filled with random numbers, if it did."""
    if missing := sorted(set(loaded["missing_keys"]) - set(may_lack)):
        return (
            f"its files hold no weights for {_listed(missing)}; it is not whole, or of another kind"
        )
    if mismatched := sorted(loaded["mismatched_keys"]):
        name, found, expected = mismatched[0]
        return f"{name} is {list(found)} in its files, but by config.json {list(expected)}"
    return None


def _file_dtype(base: str | Path, config: Any) -> torch.dtype | None:
    """Precision of the weights as they lie in the files; of a hub name, as config.json says."""
    dtype: torch.dtype | None = config.dtype or config.get_text_config().dtype
    return dtype_of_files(Path(base)) or dtype


def _load(auto_class: Any, base: str, options: dict[str, Any]) -> Any:
    """Load with packed attention, or with the model's own where it takes no other."""
    checks = {
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        "weights_only": True,  # of a pickle, tensors alone
    }
    try:
        return auto_class.from_pretrained(
            base, **copy.deepcopy(options), **checks, attn_implementation=PACKED
        )
    except _ATTENTION_REFUSED:
        return auto_class.from_pretrained(base, **options, **checks)


_ATTENTION_REFUSED = (AttributeError, ImportError, KeyError, TypeError, ValueError)
"""What models raise at an attention implementation that they do not know, among other things."""


_ZIP = b"PK\x03\x04"
"""How a pickle of PyTorch begins that is not from before 1.6."""


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _reason(base: str | Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "its weights are a pickle that holds more than tensors; give them as safetensors"
    return why_not_loaded(base, error)
