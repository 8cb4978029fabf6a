"""Token ids that a model may write: those its tokenizer knows.

Embeddings are often padded to a round number of rows. The rows past the tokenizer's last id are no
tokens, so they take no part in any distribution: the head ends before them, in training, scoring
and sampling alike, and probabilities sum to 1 over the rest.
"""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer

from rlhf_core.errors import ModelError
from rlhf_core.models.compute import unwrapped
from rlhf_core.tokenization.model_folder import loading_options

_KNOWN = "_num_known_ids"
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")


def limit_ids(model: nn.Module, base: str | Path, revision: str | None = None) -> None:
    """End the model's head after the last id of the tokenizer that lies beside its weights.

    Raises:
        ModelError: the tokenizer has ids for which the model has no embedding.
    """
    known = _known_ids(base, revision)
    rows = num_embeddings(model)
    if known is not None and known > rows:
        raise ModelError(
            f"{base}: the tokenizer's highest token is {known - 1}, but the model embeds {rows}; "
            "resize the model's embeddings, or take the tokenizer it was trained with"
        )
    setattr(unwrapped(model), _KNOWN, known)


def num_known_ids(model: nn.Module) -> int | None:
    """Return one more than the highest id that the model may write; None for all of its head."""
    known: int | None = getattr(unwrapped(model), _KNOWN, None)
    return known


def num_embeddings(model: nn.Module) -> int:
    """Return how many ids the model can read."""
    embedding: Any = unwrapped(model).get_input_embeddings()
    return int(embedding.weight.shape[0])


def suppress_unknown_ids(model: nn.Module) -> None:
    """Have ``generate`` leave them out too, by ``suppress_tokens`` of generation_config.json."""
    inner, known = unwrapped(model), num_known_ids(model)
    head = inner.get_output_embeddings()
    if known is not None and head is not None and known < len(head.weight):
        inner.generation_config.suppress_tokens = list(range(known, len(head.weight)))


def _known_ids(base: str | Path, revision: str | None) -> int | None:
    if Path(base).is_dir() and not any((Path(base) / name).is_file() for name in _FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), **loading_options(base, revision))
    except Exception:
        return None
    return max(tokenizer.get_vocab().values(), default=-1) + 1 or None
