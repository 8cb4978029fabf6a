"""Token ids that a model may write: those its tokenizer knows.

Embeddings are often padded to a round number of rows. The rows past the tokenizer's last id are no
tokens, so they take no part in any distribution: the head ends before them, in training, scoring
and sampling alike, and probabilities sum to 1 over the rest. Ids below the last one that no token
has, as where added tokens leave a gap behind the vocabulary, have probability 0.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rlhf_core.errors import ModelError
from rlhf_core.models.compute import unwrapped
from rlhf_core.tokenization import tokenizer_beside

logger = logging.getLogger(__name__)

_KNOWN = "_num_known_ids"
_GAPS = "_ids_without_token"


def limit_ids(model: nn.Module, base: str | Path, revision: str | None = None) -> None:
    """End the model's head after the last id of the tokenizer that lies beside its weights.

    Special tokens may lie past the embeddings (Gemma 3's image token does in its text models): they
    are never written, and no text becomes one.

    A tokenizer that cannot be loaded is logged and limits nothing: whoever needs it says more.

    Raises:
        ModelError: ordinary tokens have no embedding.
    """
    setattr(unwrapped(model), _KNOWN, None)
    setattr(unwrapped(model), _GAPS, ())
    try:
        tokenizer = tokenizer_beside(base, revision=revision)
    except ModelError as error:
        logger.warning("%s; ids past its vocabulary are not kept from being sampled", error)
        return
    if tokenizer is None:
        return
    rows, ids = num_embeddings(model), set(tokenizer.get_vocab().values())
    added = getattr(tokenizer, "added_tokens_decoder", {})
    highest = max(ids - {number for number, token in added.items() if token.special}, default=-1)
    if highest >= rows:
        raise ModelError(
            f"{base}: the tokenizer's highest token is {highest}, but the model embeds {rows}; "
            "resize the model's embeddings, or take the tokenizer it was trained with"
        )
    known = min(max(ids, default=rows - 1) + 1, rows)
    setattr(unwrapped(model), _KNOWN, known)
    setattr(unwrapped(model), _GAPS, tuple(sorted(set(range(known)) - ids)) if ids else ())


def num_known_ids(model: nn.Module) -> int | None:
    """Return one more than the highest id that the model may write; None for all of its head."""
    known: int | None = getattr(unwrapped(model), _KNOWN, None)
    return known


def ids_without_token(model: nn.Module) -> tuple[int, ...]:
    """Return the ids below ``num_known_ids`` that no token has, in order."""
    gaps: tuple[int, ...] = getattr(unwrapped(model), _GAPS, ())
    return gaps


def num_embeddings(model: nn.Module) -> int:
    """Return how many ids the model can read."""
    embedding: Any = unwrapped(model).get_input_embeddings()
    return int(embedding.weight.shape[0])


def require_same_ids(written: int, read_by: Mapping[str, nn.Module | None]) -> None:
    """Check that every model can read what the policy can write.

    Args:
        written: how many ids the policy writes.
        read_by: the others by role; None where there is none.

    Raises:
        ModelError: one has fewer embeddings; it would be asked for a row that it has not.
    """
    for role, model in read_by.items():
        if model is not None and num_embeddings(model) < written:
            raise ModelError(
                f"the {role} embeds {num_embeddings(model)} token ids, but the policy writes "
                f"{written}; train it from the same SFT model, or one with the same tokenizer"
            )


def unknown_ids(model: nn.Module) -> list[int]:
    """Return the ids within the head that no token has."""
    known, head = num_known_ids(model), unwrapped(model).get_output_embeddings()
    if known is None or head is None:
        return []
    return [*ids_without_token(model), *range(known, len(head.weight))]


def suppress_unknown_ids(model: nn.Module) -> None:
    """Have ``generate`` leave them out too, by ``suppress_tokens`` of generation_config.json."""
    if unknown := unknown_ids(model):
        unwrapped(model).generation_config.suppress_tokens = unknown
