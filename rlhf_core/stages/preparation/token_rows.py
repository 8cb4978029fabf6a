"""The token check of rows: exactly what the renderer gives, many answers encoded at once."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rlhf_core.dataprep.cleaning.rules import AT_FAULT, Problem, Row
from rlhf_core.dataprep.keys import Key, text_key
from rlhf_core.errors import DataError
from rlhf_core.schema import Conversation
from rlhf_core.tokenization import as_token_ids
from rlhf_core.tokenization.render import Opened
from rlhf_core.tokenization.turns import QUESTION

if TYPE_CHECKING:
    from rlhf_core.tokenization import Renderer, TokenIds

_PROBES = ("Yes.", " two  spaces\nand a line ", "Grüße, 図書館 🙂", "x" * 50, "")
"""Texts on which the quick way must agree with the renderer, or is not taken."""
_OPENED_AT_ONCE = 1_024
_SIDES = tuple(AT_FAULT)
Answer = tuple[Opened, str]


class RowTokens:
    """Says what is wrong with the tokens of rows, for one tokenizer and chat template.

    A prompt's tokens are those of ``apply_chat_template``, prompt and response together those of
    the whole rendering up to the one end of the turn, both come back from the tokens, and nothing
    has to be cut.
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
        self._open = lru_cache(_OPENED_AT_ONCE)(self._open_anew)
        self._backend = _backend_of(renderer)
        if self._backend is not None:
            answers = [(renderer.open((QUESTION,)), probe) for probe in _PROBES]
            quickly = self._encode(answers)
            backend, self._backend = self._backend, None
            if self._encode(answers) == quickly:
                self._backend = backend

    def rows(self, rows: Sequence[Row]) -> list[Problem | None]:
        """Return what is wrong with each row: its prompt and its responses."""
        opened = [self._open(prompt) for prompt, _ in rows]
        encoded = iter(
            self._encode(
                [
                    (found, response)
                    for found, (_, responses) in zip(opened, rows, strict=True)
                    if isinstance(found, Opened)
                    for response in responses
                ]
            )
        )
        return [
            self._row_problem(found, [next(encoded) for _ in responses])
            if isinstance(found, Opened)
            else found
            for found, (_, responses) in zip(opened, rows, strict=True)
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

    def _row_problem(self, opened: Opened, found: list[int | Problem]) -> Problem | None:
        """The first thing that is wrong, and with which of the responses."""
        lengths = [part if isinstance(part, int) else 0 for part in found]
        totals = [len(opened.ids) + length for length in lengths] or [len(opened.ids) + 1]
        broken = [index for index, part in enumerate(found) if isinstance(part, tuple)]
        if broken:
            reason, detail = next(part for part in found if isinstance(part, tuple))
            return reason, f"{_fault(broken, found)}: {detail}"
        long = [index for index, total in enumerate(totals) if total > self._max_length]
        if not long:
            return None
        detail = f"{max(totals)} tokens, at most {self._max_length} fit"
        return "too_long", f"{_fault(long, found)}: {detail}"

    def _prompt_tokens(self, prompt: Conversation) -> int | Problem:
        """Number of a prompt's tokens, or what is wrong with them; asked once a prompt."""
        key = text_key("\x1e".join(f"{turn.role}\x1f{turn.content}" for turn in prompt))
        if key not in self._prompts:
            found = self._open(prompt)
            self._prompts[key] = len(found.ids) if isinstance(found, Opened) else found
        return self._prompts[key]

    def _open_anew(self, prompt: Conversation) -> Opened | Problem:
        renderer = self._renderer
        try:
            opened = renderer.open(prompt)
        except DataError as error:
            return "not_renderable", f"the prompt: {error}"
        tokens = opened.ids.tolist()
        back = str(renderer.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
        if any(turn.content.strip() not in back for turn in prompt):
            return "not_renderable", "the prompt does not survive template and tokenizer"
        return opened

    def _encode(self, answers: Sequence[Answer]) -> list[int | Problem]:
        """Number of tokens of each response, its end included, or what is wrong with them."""
        texts = [self._text_of(*answer) for answer in answers]
        encoded = iter(self._ids_of([text for text in texts if isinstance(text, str)]))
        responses = [
            self._response_of(opened, text, next(encoded)) if isinstance(text, str) else text
            for (opened, _), text in zip(answers, texts, strict=True)
        ]
        shown = iter(self._shown([part for part in responses if not isinstance(part, tuple)]))
        return [
            part if isinstance(part, tuple) else _count(part, next(shown), said)
            for part, (_, said) in zip(responses, answers, strict=True)
        ]

    def _text_of(self, opened: Opened, response: str) -> str | Problem:
        try:
            return self._renderer.answered_text(opened, response)
        except DataError as error:
            return "not_renderable", str(error)

    def _ids_of(self, texts: Sequence[str]) -> "list[TokenIds]":
        if self._backend is None:
            encode = self._renderer.tokenizer.encode
            return [as_token_ids(encode(text, add_special_tokens=False)) for text in texts]
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [as_token_ids(encoding.ids) for encoding in found]

    def _response_of(self, opened: Opened, text: str, ids: "TokenIds") -> "TokenIds | Problem":
        try:
            self._renderer.refuse_forged(text, ids)
            return self._renderer.after_prompt(opened.ids, ids)
        except DataError as error:
            return "not_renderable", str(error)

    def _shown(self, responses: "Sequence[TokenIds]") -> list[str]:
        """What each response reads as."""
        renderer = self._renderer
        if self._backend is None:
            return [renderer.response_text(ids) for ids in responses]
        anchor = list(renderer.anchor_ids)
        alone = len(self._backend.decode(anchor, skip_special_tokens=True))
        rows = [[*anchor, *ids[:-1].tolist()] for ids in responses]
        before, after = renderer.shown
        return [
            text[alone:].removeprefix(before).removesuffix(after)
            for text in self._backend.decode_batch(rows, skip_special_tokens=True)
        ]


def _count(ids: "TokenIds", shown: str, said: str) -> int | Problem:
    # Templates take the white space around an answer away, and so does the tokenizer of some.
    if shown != said and shown.strip() != said.strip():
        return "not_renderable", "the response does not survive the tokenizer"
    return len(ids)


def _fault(indices: Sequence[int], responses: Sequence[object]) -> str:
    """Say which of a row's responses are meant."""
    if len(responses) != 2:
        return "the response" if responses else "the prompt"
    return _SIDES[2] if len(indices) == 2 else _SIDES[indices[0]]


def _backend_of(renderer: "Renderer") -> Any:
    """The Rust tokenizer behind a fast one; None where there is none."""
    backend = getattr(renderer.tokenizer, "backend_tokenizer", None)
    return backend if hasattr(backend, "encode_batch_fast") else None
