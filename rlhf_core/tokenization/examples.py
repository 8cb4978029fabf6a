"""Token sequences of single records, before they are packed into batches."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]
"""[T] int32. Four bytes a token: whole data sets are kept in memory in this form."""


def as_token_ids(ids: Iterable[int]) -> TokenIds:
    """Return ``ids`` as one int32 array."""
    return np.fromiter(ids, dtype=np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedPrompt:
    """A prompt that ends where the model's answer begins."""

    prompt_id: str
    prompt_ids: TokenIds

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedExample:
    """One prompt with one response."""

    example_id: str
    prompt_ids: TokenIds
    response_ids: TokenIds
    """Ends with EOS."""
    prompt_mask: NDArray[np.bool_] | None = None
    """[T] True on prompt tokens that count in the loss (earlier assistant turns); None: none do."""

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedUnpaired:
    """One prompt with one response that is good or bad by itself."""

    example_id: str
    prompt_ids: TokenIds
    response_ids: TokenIds
    """Ends with EOS."""
    desirable: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedPair:
    """One prompt with the chosen and the rejected response."""

    pair_id: str
    prompt_ids: TokenIds
    chosen_ids: TokenIds
    """Ends with EOS, as does ``rejected_ids``."""
    rejected_ids: TokenIds
    probability: float = 1.0
    """Probability that ``chosen`` is truly better (soft label)."""
    margin: float = 0.0
    """By how much the score of ``chosen`` should lie above that of ``rejected``."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))
