"""Conversations to tokens and back, as the model's publisher writes them."""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_core.errors import DataError, ModelError, RlhfError
from rlhf_core.schema import (
    Conversation,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    UnpairedExample,
)
from rlhf_core.tokenization.examples import (
    TokenIds,
    TokenizedExample,
    TokenizedPair,
    TokenizedPrompt,
    TokenizedUnpaired,
    as_token_ids,
)
from rlhf_core.tokenization.template import apply_template
from rlhf_core.tokenization.turns import ANSWERED, QUESTION, Turns, find_turns, with_answer

ANCHOR = "\x01"
"""Text put before a continuation while it is encoded or decoded, so that tokenizers which prepend
a space to every string (SentencePiece's habit) do not put one there, nor take one away."""
_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")
_SPOKEN = "One answer, in two sentences. Second: 7!"


@dataclass(frozen=True)
class Opened:
    """A conversation rendered up to where the assistant speaks."""

    conversation: Conversation
    text: str
    ids: TokenIds


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with its chat template, probed once. Make one with ``make_renderer``.

    A prompt is what ``apply_chat_template(add_generation_prompt=True)`` gives. A response is what
    the template's whole rendering has after it, up to the token that ends the turn. Where the
    template writes no such token, the tokenizer's EOS stands behind the answer.
    """

    tokenizer: PreTrainedTokenizerBase
    turns: Turns
    turn_end_id: int
    """Ends every response in training."""
    end_ids: tuple[int, ...]
    """What stops sampling, lowest first: the end of a turn, EOS, and what the model's own files
    name."""
    anchor_ids: tuple[int, ...]
    """Tokens of ``ANCHOR``; empty where the tokenizer needs no such care."""
    shown: tuple[str, str] = ("", "")
    """Text that a rendered answer has before and after what was said, once decoded."""

    def prompt(self, prompt: Prompt) -> TokenizedPrompt:
        """Tokens of a prompt up to the first token of the answer."""
        return TokenizedPrompt(prompt.prompt_id, self.prompt_ids(prompt.prompt))

    def demonstration(
        self, demonstration: Demonstration, *, all_turns: bool = False
    ) -> TokenizedExample:
        """Tokens of a demonstration; ``all_turns`` lets earlier assistant turns count too."""
        opened = self.open(demonstration.prompt)
        prompt_mask = self._assistant_mask(opened) if all_turns else None
        response_ids = self.answer_ids(opened, demonstration.response)
        return TokenizedExample(
            demonstration.demonstration_id, opened.ids, response_ids, prompt_mask
        )

    def pair(self, pair: PreferencePair) -> TokenizedPair:
        """Tokens of a pair; both responses follow the very same prompt tokens."""
        opened = self.open(pair.prompt)
        return TokenizedPair(
            pair_id=pair.comparison_id,
            prompt_ids=opened.ids,
            chosen_ids=self.answer_ids(opened, pair.chosen),
            rejected_ids=self.answer_ids(opened, pair.rejected),
            probability=pair.probability,
        )

    def unpaired(self, example: UnpairedExample) -> TokenizedUnpaired:
        """Tokens of a response with its label."""
        opened = self.open(example.prompt)
        response_ids = self.answer_ids(opened, example.response)
        return TokenizedUnpaired(example.example_id, opened.ids, response_ids, example.label)

    def prompt_ids(self, conversation: Conversation) -> TokenIds:
        """Tokens of ``apply_chat_template(conversation, add_generation_prompt=True)``.

        Raises:
            DataError: a message would become a control token, or the template refuses it.
        """
        return self.open(conversation).ids

    def open(self, conversation: Conversation) -> Opened:
        """Render a conversation up to the first token of the answer.

        Raises:
            DataError: as ``prompt_ids``.
        """
        for message in conversation:
            self.refuse_unusable(message.content)
        text = apply_template(self.tokenizer, conversation, generation_prompt=True)
        return Opened(conversation, text, self.encode(text))

    def answer_ids(self, opened: Opened, response: str) -> TokenIds:
        """Tokens of a response, the end of the turn at its end and only there.

        Raises:
            DataError: it would become a control token; or prompt and response together are not
                what the template's whole rendering gives.
        """
        return self.after_prompt(opened.ids, self.encode(self.answered_text(opened, response)))

    def answered_text(self, opened: Opened, response: str) -> str:
        """Text of prompt and response, up to the end of the turn if the template writes one.

        Raises:
            DataError: as ``answer_ids``.
        """
        self.refuse_unusable(response)
        answered = with_answer(opened.conversation, response)
        whole = apply_template(self.tokenizer, answered, generation_prompt=False)
        return self.up_to_end(opened.text, whole, response)

    def up_to_end(self, opened: str, whole: str, response: str) -> str:
        """Text of prompt and response, of the ``whole`` rendering of both.

        Args:
            opened: rendering of the prompt alone.
            whole: that of prompt and response.
            response: as it was given.

        Raises:
            DataError: as ``answer_ids``.
        """
        turns = self.turns
        if not whole.startswith(opened) or not whole.endswith(turns.closing):
            raise DataError(
                "with its answer the chat template writes this conversation in another way than "
                "without"
            )
        body = whole[len(opened) : len(whole) - len(turns.closing)]
        if response.strip() not in (body.strip(), body.removeprefix(turns.lead).strip()):
            raise DataError("the chat template does not keep the answer as it is written")
        return whole[: len(whole) - turns.num_left_off]

    def after_prompt(self, prompt_ids: TokenIds, whole_ids: TokenIds) -> TokenIds:
        """What ``whole_ids`` have after ``prompt_ids``; with the end of the turn.

        Raises:
            DataError: they do not begin with them; or hold that end anywhere else.
        """
        length = len(prompt_ids)
        if not np.array_equal(whole_ids[:length], prompt_ids):
            raise DataError(
                "the answer's first letters join the prompt's last token: prompt and answer would "
                "not be the tokens of the template's whole rendering"
            )
        rest = whole_ids[length:]
        if not self.turns.is_written:
            rest = np.append(rest, np.int32(self.turn_end_id))
        if len(rest) == 0 or int(rest[-1]) != self.turn_end_id:
            raise DataError("the response does not end in the token that ends a turn")
        if any((rest[:-1] == end).any() for end in self.end_ids):
            raise DataError("the response holds a token that ends a turn")
        return rest

    def response_ids(self, response: str) -> TokenIds:
        """Tokens of a response to a short question, the end of the turn at its end.

        Unlike ``answer_ids`` it takes what a model said: an answer whose first letters would join
        the prompt's last token stays apart from it, as it was sampled.

        Raises:
            DataError: the response would become a control token.
        """
        try:
            return self.answer_ids(self._question, response)
        except DataError:
            self.refuse_unusable(response)
        turns = self.turns
        text = turns.lead + response + (turns.gap if turns.is_written else "")
        anchor = ANCHOR if self.anchor_ids else ""
        ids = self.tokenizer.encode(anchor + text, add_special_tokens=False)
        return as_token_ids([*ids[len(self.anchor_ids) :], self.turn_end_id])

    def response_text(self, ids: TokenIds | list[int]) -> str:
        """Text of sampled response tokens: what follows an end is dropped, special tokens too."""
        tokens = [int(token) for token in ids]
        ended = next((at for at, token in enumerate(tokens) if token in self.end_ids), None)
        before, after = self.shown
        text = self._decode(tokens[:ended]).removeprefix(before)
        return text if ended is None else text.removesuffix(after)

    def encode(self, text: str) -> TokenIds:
        """Tokens of a rendered conversation.

        Raises:
            DataError: it has more control tokens than are written in it, so the tokenizer reads
                one where other letters stand.
        """
        ids = as_token_ids(self.tokenizer.encode(text, add_special_tokens=False))
        self.refuse_forged(text, ids)
        return ids

    def refuse_forged(self, text: str, ids: TokenIds) -> None:
        """Refuse tokens with more control tokens than ``text`` has."""
        written = len(self.turns.control_pattern.findall(text))
        is_control = self._is_control
        if int(is_control[np.minimum(ids, len(is_control) - 1)].sum()) > written:
            raise DataError("the tokenizer reads a special token where the text has other letters")

    def refuse_unusable(self, text: str) -> None:
        """Refuse text that is no text, or that would become a control token."""
        if not text.isascii() and _HALF_OF_A_PAIR.search(text):
            raise DataError("text holds half of a surrogate pair, which is no character")
        found = self.turns.control_pattern.search(text)
        if found is not None:
            raise DataError(f"text holds {found.group()!r}, a special token of the tokenizer")

    @cached_property
    def _question(self) -> Opened:
        return self.open((QUESTION,))

    @cached_property
    def control_ids(self) -> list[int]:
        """Ids of ``turns.control_tokens``, but for that of unknown text."""
        unknown = self.tokenizer.unk_token
        names = [name for name in self.turns.control_tokens if name != unknown]
        return [_id_of(self.tokenizer, name) for name in names]

    @cached_property
    def _is_control(self) -> np.ndarray:
        """[V] bool, up to the highest control token and one more: a look-up for many ids."""
        table = np.zeros(max(self.control_ids, default=0) + 2, dtype=np.bool_)
        table[self.control_ids] = True
        return table

    def _decode(self, ids: list[int]) -> str:
        anchored, alone = (
            str(
                self.tokenizer.decode(
                    [*self.anchor_ids, *some],
                    skip_special_tokens=True,
                    clean_up_tokenization_spaces=False,
                )
            )
            for some in (ids, [])
        )
        return anchored[len(alone) :]

    def _assistant_mask(self, opened: Opened) -> np.ndarray:
        """[T] True on the tokens of earlier assistant turns, and on what ends each."""
        encoded = self.tokenizer(opened.text, add_special_tokens=False, return_offsets_mapping=True)
        spans = self._assistant_spans(opened.conversation, opened.text)
        mask = np.zeros(len(opened.ids), dtype=np.bool_)
        ends = self.control_ids
        for index, (start, end) in enumerate(encoded["offset_mapping"]):
            # A control token may take the white space behind it along.
            within = start < end and encoded["input_ids"][index] in ends
            mask[index] = any(
                low <= start < high and (within or start < end <= high) for low, high in spans
            )
        return mask

    def _assistant_spans(self, conversation: Conversation, text: str) -> list[tuple[int, int]]:
        spans = []
        for turn, message in enumerate(conversation):
            if message.role != "assistant":
                continue
            # Rendered with another text in its place, a turn lies between what stays the same
            # before and behind it: so no template has to be understood.
            stand_in = Message(role="assistant", content=ANSWERED)
            other = apply_template(
                self.tokenizer,
                (*conversation[:turn], stand_in, *conversation[turn + 1 :]),
                generation_prompt=True,
            )
            before, _, after = other.partition(ANSWERED)
            end = len(text) - len(after)
            body = text[len(before) : end]
            if (
                not text.startswith(before)
                or not text.endswith(after)
                or body.strip() != message.content.strip()
            ):
                raise DataError(
                    f"turn {turn}: the chat template does not keep assistant turns as written, so "
                    "they cannot be trained on; use loss on the response only"
                )
            opening = apply_template(self.tokenizer, conversation[:turn], generation_prompt=True)
            # What a template writes behind the opening, an empty thought, is the model's to write.
            start = len(before)
            if before.startswith(opening):
                start = len(opening)
            mark = self.turns.earlier_end
            spans.append((start, end + len(mark) if mark and after.startswith(mark) else end))
        return spans


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, published_ends: tuple[int, ...] = ()
) -> Renderer:
    """Probe ``tokenizer`` and its chat template; see ``load_tokenizer`` for one with a template.

    Args:
        tokenizer: with a chat template and EOS.
        published_ends: what the model's own files let stop sampling, ``eos_token_id`` of
            generation_config.json.

    Raises:
        ModelError: the template fails on a plain question; the tokens of a prompt and an answer
            are not those of the template's whole rendering; or text does not survive the round
            trip through the tokenizer; or the tokenizer fails on text.
    """
    try:
        return _probed(tokenizer, published_ends)
    except RlhfError:
        raise
    except Exception as error:  # a value of its files that nothing looked at before
        said = next(iter(str(error).splitlines()), "")
        raise ModelError(
            f"the tokenizer fails on a question and an answer: {type(error).__name__}: {said}"
        ) from error


def _probed(tokenizer: PreTrainedTokenizerBase, published_ends: tuple[int, ...]) -> Renderer:
    turns = find_turns(tokenizer)
    turn_end = _id_of(tokenizer, turns.end)
    ends = {turn_end, int(tokenizer.eos_token_id), *published_ends}
    renderer = Renderer(
        tokenizer=tokenizer,
        turns=turns,
        turn_end_id=turn_end,
        end_ids=tuple(sorted(ends)),
        anchor_ids=_anchor_ids(tokenizer),
    )
    try:
        said = renderer.answer_ids(renderer.open((QUESTION,)), _SPOKEN)
    except DataError as error:
        raise ModelError(
            f"the chat template and the tokenizer do not go together: {error}; set "
            "model.chat_template to another template"
        ) from error
    before, found, after = renderer.response_text(said).partition(_SPOKEN)
    if not found:
        raise ModelError(f"text does not survive the tokenizer: {_SPOKEN!r} became {before!r}")
    return replace(renderer, shown=(before, after))


def _id_of(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    index: Any = tokenizer.convert_tokens_to_ids(token)
    return int(index)


def _anchor_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)
    anchored = tokenizer.encode(ANCHOR + "pong", add_special_tokens=False)
    plain = tokenizer.encode("pong", add_special_tokens=False)
    if anchored[: len(anchor)] != anchor or anchored[len(anchor) :] == plain:
        return ()
    return tuple(anchor)
