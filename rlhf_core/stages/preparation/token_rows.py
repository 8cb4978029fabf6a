"""The token check of rows: exactly what the renderer gives, many answers encoded at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_core.dataprep.cleaning.rules import AT_FAULT, Problem, Row
from rlhf_core.errors import DataError
from rlhf_core.schema import Conversation
from rlhf_core.stages.preparation.word_tokens import Prompt, WordTokens, cuts_at_spaces
from rlhf_core.tokenization import as_token_ids
from rlhf_core.tokenization.render import Opened
from rlhf_core.tokenization.template_cache import TemplateCache
from rlhf_core.tokenization.turns import QUESTION, with_answer

if TYPE_CHECKING:
    from rlhf_core.tokenization import Renderer, TokenIds

_PROBES = ("Yes.", " two  spaces\nand a line ", "Grüße, 図書館 🙂", "x" * 50, "")
"""Texts on which the quick way must agree with the renderer, or is not taken."""
_ASKED_AT_ONCE = 1_024
_SIDES = tuple(AT_FAULT)
Answer = tuple[Opened, str]


@dataclass(slots=True)
class Asked:
    """A prompt that answers follow."""

    conversation: Conversation
    text: str
    num_tokens: int
    words: Prompt | None
    """What an answer's words need to know of it; None where it takes its tokens."""
    opened: Opened | None = None


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
        self._asked: dict[Conversation, Asked | Problem] = {}
        self._backend = _backend_of(renderer)
        if self._backend is not None:
            answers = [(renderer.open((QUESTION,)), probe) for probe in _PROBES]
            quickly = self._encode(answers)
            backend, self._backend = self._backend, None
            if self._encode(answers) == quickly:
                self._backend = backend
        self._words: WordTokens | None = None
        self._template_cache = TemplateCache(renderer.tokenizer)
        if self._backend is not None and cuts_at_spaces(self._backend) and not renderer.anchor_ids:
            self._words = WordTokens(renderer, self._backend)

    def rows(self, rows: Sequence[Row]) -> list[Problem | None]:
        """Return what is wrong with each row: its prompt and its responses."""
        asked = self._ask([prompt for prompt, _ in rows])
        lengths = iter(
            self._lengths(
                [
                    (found, response)
                    for found, (_, responses) in zip(asked, rows, strict=True)
                    if isinstance(found, Asked)
                    for response in responses
                ]
            )
        )
        return [
            self._row_problem(found, [next(lengths) for _ in responses])
            if isinstance(found, Asked)
            else found
            for found, (_, responses) in zip(asked, rows, strict=True)
        ]

    def prompts(self, prompts: Sequence[Conversation]) -> list[Problem | None]:
        """Return what is wrong with prompts to sample from: an answer must fit behind each."""
        return [
            self._room_problem(found.num_tokens) if isinstance(found, Asked) else found
            for found in self._ask(prompts)
        ]

    def _room_problem(self, found: int) -> Problem | None:
        longest, shortest_out = self.room
        limit = self._max_prompt_length
        if limit is not None and found > limit:
            self.room = longest, found if shortest_out is None else min(shortest_out, found)
            return "too_long", f"{found} tokens of prompt, at most {limit} leave room to answer"
        self.room = max(longest, found), shortest_out
        return None

    def _row_problem(self, asked: Asked, found: list[int | Problem]) -> Problem | None:
        """The first thing that is wrong, and with which of the responses."""
        lengths = [part if isinstance(part, int) else 0 for part in found]
        totals = [asked.num_tokens + length for length in lengths] or [asked.num_tokens + 1]
        broken = [index for index, part in enumerate(found) if isinstance(part, tuple)]
        if broken:
            reason, detail = next(part for part in found if isinstance(part, tuple))
            return reason, f"{_fault(broken, found)}: {detail}"
        long = [index for index, total in enumerate(totals) if total > self._max_length]
        if not long:
            return None
        detail = f"{max(totals)} tokens, at most {self._max_length} fit"
        return "too_long", f"{_fault(long, found)}: {detail}"

    def _ask(self, prompts: Sequence[Conversation]) -> "list[Asked | Problem]":
        """Each prompt as the answers need it, or what is wrong with it."""
        if len(self._asked) > _ASKED_AT_ONCE:
            self._asked.clear()
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._asked]
        known = self._known(fresh, self._rendered(fresh, generation_prompt=True))
        for prompt, found in zip(fresh, known, strict=True):
            self._asked[prompt] = found or self._opened_anew(prompt)
        return [self._asked[prompt] for prompt in prompts]

    def _rendered(
        self, conversations: Sequence[Conversation], *, generation_prompt: bool
    ) -> Sequence[str | None]:
        """What the template makes of each; None where it has to be asked one by one."""
        texts = None
        if self._words is not None:
            texts = self._template_cache.render(conversations, generation_prompt=generation_prompt)
        return [None] * len(conversations) if texts is None else texts

    def _known(
        self, prompts: Sequence[Conversation], texts: Sequence[str | None]
    ) -> list[Asked | None]:
        """Prompts of which their words tell that their tokens are sound; None where they do not."""
        plain = [
            text if text is not None and self._is_plain(prompt, text) else None
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        if self._words is None:
            return [None] * len(prompts)
        told = iter(self._words.prompts([text for text in plain if text is not None]))
        words = [None if text is None else next(told) for text in plain]
        return [
            None if text is None or found is None else Asked(prompt, text, found.num_tokens, found)
            for prompt, text, found in zip(prompts, plain, words, strict=True)
        ]

    def _is_plain(self, prompt: Conversation, text: str) -> bool:
        """Tell whether a prompt is rendered as it is, and holds no control token."""
        try:
            for turn in prompt:
                self._renderer.refuse_unusable(turn.content)
        except DataError:
            return False
        return all(turn.content.strip() in text for turn in prompt)

    def _lengths(self, answers: Sequence[tuple[Asked, str]]) -> list[int | Problem]:
        """Number of tokens of each response, or what is wrong with them: by words, or whole."""
        whole = self._rendered(
            [with_answer(asked.conversation, response) for asked, response in answers],
            generation_prompt=False,
        )
        known = self._lengths_by_words(answers, whole)
        unknown = [answer for answer, length in zip(answers, known, strict=True) if length is None]
        rest = iter(self._encode([(self._opened(asked), said) for asked, said in unknown]))
        return [next(rest) if length is None else length for length in known]

    def _lengths_by_words(
        self, answers: Sequence[tuple[Asked, str]], whole: Sequence[str | None]
    ) -> list[int | None]:
        """Number of tokens of each response as its words tell it; None where they do not."""
        if self._words is None:
            return [None] * len(answers)
        plain = [
            self._plain_answer(asked, response, text)
            for (asked, response), text in zip(answers, whole, strict=True)
        ]
        lengths = iter(self._words.answers([row for row in plain if row is not None]))
        return [None if row is None else next(lengths) for row in plain]

    def _plain_answer(
        self, asked: Asked, response: str, whole: str | None
    ) -> tuple[Prompt, str, str] | None:
        """Of a response that is rendered as it is, the prompt, the rendering behind it and it."""
        if asked.words is None or whole is None:
            return None
        try:
            self._renderer.refuse_unusable(response)
            text = self._renderer.up_to_end(asked.text, whole, response)[len(asked.text) :]
        except DataError:
            return None
        # A template may trim or change a response: its words tell the length only where what was
        # rendered, less what the template puts around it, is the response itself.
        turns, (before, after) = self._renderer.turns, self._renderer.shown
        said = text.removesuffix(turns.end) if turns.is_written else text
        if said.removeprefix(before).removesuffix(after).strip() != response.strip():
            return None
        return asked.words, text, response

    def _opened(self, asked: Asked) -> Opened:
        if asked.opened is None:
            asked.opened = self._renderer.open(asked.conversation)
        return asked.opened

    def _opened_anew(self, prompt: Conversation) -> Asked | Problem:
        opened = self._open_anew(prompt)
        if isinstance(opened, tuple):
            return opened
        return Asked(prompt, opened.text, len(opened.ids), None, opened)

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
