"""The token check of rows: exactly what the renderer gives, many responses encoded at once."""

import re
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_core.dataprep.keys import Key, text_key
from rlhf_core.dataprep.rules import Problem, Row
from rlhf_core.errors import DataError
from rlhf_core.schema import Conversation
from rlhf_core.tokenization.render import ANCHOR

if TYPE_CHECKING:
    from rlhf_core.tokenization import Renderer

_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")
_PROBES = ("Yes.", " two  spaces\nand a line ", "Grüße, 図書館 🙂", "x" * 50, "")
"""Texts on which the quick way must agree with the renderer, or is not taken."""


class RowTokens:
    """Says what is wrong with the tokens of rows, for one tokenizer and chat template.

    A prompt has exactly one BOS (where the model has one), a response exactly one EOS and that at
    its end, both come back from the tokens unchanged, and nothing has to be cut. Every response
    follows the very same prompt tokens, for prompt and response are encoded apart.
    """

    def __init__(
        self, renderer: "Renderer", max_length: int, max_prompt_length: int | None
    ) -> None:
        """Check against ``max_length`` tokens a row; sampling prompts have a limit of their own."""
        self._renderer = renderer
        self._max_length = max_length
        self._max_prompt_length = max_prompt_length
        self.room: tuple[int, int | None] = 0, None
        self._prompts: dict[Key, int | Problem] = {}
        self._backend = _backend_of(renderer)
        if self._backend is not None:
            slowly = [self._slowly(probe) for probe in _PROBES]
            if self._quickly(_PROBES) != slowly:
                self._backend = None

    def rows(self, rows: Sequence[Row]) -> list[Problem | None]:
        """Return what is wrong with each row: its prompt and its responses."""
        responses = [response for _, responses in rows for response in responses]
        encoded = iter(self._encode(responses))
        return [
            self._row_problem(prompt, [next(encoded) for _ in responses])
            for prompt, responses in rows
        ]

    def prompt(self, prompt: Conversation) -> Problem | None:
        """Return what is wrong with a prompt to sample from: an answer must fit behind it."""
        found = self._prompt_tokens(prompt)
        if isinstance(found, tuple):
            return found
        longest, shortest_out = self.room
        limit = self._max_prompt_length
        if limit is not None and found > limit:
            self.room = longest, found if shortest_out is None else min(shortest_out, found)
            return "too_long", f"{found} tokens of prompt, at most {limit} leave room to answer"
        self.room = max(longest, found), shortest_out
        return None

    def _row_problem(self, prompt: Conversation, found: list[int | Problem]) -> Problem | None:
        first = self._prompt_tokens(prompt)
        for part in (first, *found):
            if isinstance(part, tuple):
                return part
        lengths = [part for part in found if not isinstance(part, tuple)]
        num_tokens = first + max(lengths, default=1) if isinstance(first, int) else 0
        if num_tokens > self._max_length:
            return "too_long", f"{num_tokens} tokens, at most {self._max_length} fit"
        return None

    def _prompt_tokens(self, prompt: Conversation) -> int | Problem:
        """Number of a prompt's tokens, or what is wrong with them; asked once a prompt."""
        key = text_key("\x1e".join(f"{turn.role}\x1f{turn.content}" for turn in prompt))
        if key not in self._prompts:
            self._prompts[key] = self._check_prompt(prompt)
        return self._prompts[key]

    def _check_prompt(self, prompt: Conversation) -> int | Problem:
        renderer = self._renderer
        try:
            ids = renderer.prompt_ids(prompt)
        except DataError as error:
            return "not_renderable", str(error)
        if renderer.bos_id is not None and np.count_nonzero(ids == renderer.bos_id) != 1:
            return "not_renderable", "the prompt has not exactly one BOS"
        back = str(renderer.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))
        if any(turn.content.strip() not in back for turn in prompt):
            return "not_renderable", "the prompt does not survive template and tokenizer"
        return len(ids)

    def _encode(self, responses: Sequence[str]) -> list[int | Problem]:
        """Number of tokens of each response, EOS included, or what is wrong with them."""
        if self._backend is None:
            return [self._slowly(text) for text in responses]
        plain = [self._is_plain(text) for text in responses]
        quick = iter(self._quickly(list(compress(responses, plain))))
        return [
            next(quick) if is_plain else self._slowly(text)
            for text, is_plain in zip(responses, plain, strict=True)
        ]

    def _is_plain(self, text: str) -> bool:
        """Tell whether a text has nothing that the renderer refuses."""
        if any(special in text for special in self._renderer.special_tokens):
            return False
        return text.isascii() or _HALF_OF_A_PAIR.search(text) is None

    def _quickly(self, texts: Sequence[str]) -> list[int | Problem]:
        """What ``_slowly`` says, of many texts at once and on every core."""
        renderer, backend = self._renderer, self._backend
        start = ANCHOR if renderer.anchor_ids else ""
        anchor = len(renderer.anchor_ids)
        shown = len(backend.decode(list(renderer.anchor_ids), skip_special_tokens=True))
        encoded = backend.encode_batch_fast(
            [start + renderer.lead + text for text in texts], add_special_tokens=False
        )
        ids = [found.ids for found in encoded]
        back = backend.decode_batch(ids, skip_special_tokens=True)
        return [
            self._response(
                [*tokens[anchor:], renderer.eos_id], text, again[shown:].removeprefix(renderer.lead)
            )
            for tokens, text, again in zip(ids, texts, back, strict=True)
        ]

    def _slowly(self, text: str) -> int | Problem:
        try:
            ids = self._renderer.response_ids(text)
        except DataError as error:
            return "not_renderable", str(error)
        return self._response(ids.tolist(), text, self._renderer.response_text(ids))

    def _response(self, ids: list[int], text: str, back: str) -> int | Problem:
        eos = self._renderer.eos_id
        if ids[-1] != eos or ids.count(eos) != 1:
            return "not_renderable", "the response does not end in its one EOS"
        if back != text:
            return "not_renderable", "the response does not survive the tokenizer"
        return len(ids)


def _backend_of(renderer: "Renderer") -> Any:
    """The Rust tokenizer behind a fast one; None where there is none."""
    backend = getattr(renderer.tokenizer, "backend_tokenizer", None)
    return backend if hasattr(backend, "encode_batch_fast") else None
