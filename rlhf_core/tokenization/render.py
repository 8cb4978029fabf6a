"""Conversations to tokens and back: one BOS, one EOS, the same prompt tokens every time."""

from dataclasses import dataclass

import numpy as np
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_core.errors import DataError, ModelError
from rlhf_core.schema import Conversation, Demonstration, Message, PreferencePair, Prompt
from rlhf_core.tokenization.examples import (
    TokenIds,
    TokenizedExample,
    TokenizedPair,
    TokenizedPrompt,
    as_token_ids,
)

ANCHOR = "\x01"
"""Text put before a continuation while it is encoded, so that tokenizers which prepend a space to
every string (SentencePiece's habit) do not put one between prompt and response."""


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with its chat template, probed once. Make one with ``make_renderer``.

    A prompt is the template's text up to where the assistant speaks. A response is its own text
    and EOS. Both are encoded apart, so the prompt's tokens never depend on the response.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_id: int
    bos_id: int | None
    """None where the model uses no BOS."""
    lead: str
    """White space the template puts between its generation prompt and a response."""
    anchor_ids: tuple[int, ...]
    """Tokens of ``ANCHOR``; empty where the tokenizer needs no such care."""
    special_tokens: tuple[str, ...]

    def prompt(self, prompt: Prompt) -> TokenizedPrompt:
        """Tokens of a prompt up to the first token of the answer."""
        return TokenizedPrompt(prompt.prompt_id, self.prompt_ids(prompt.prompt))

    def demonstration(
        self, demonstration: Demonstration, *, all_turns: bool = False
    ) -> TokenizedExample:
        """Tokens of a demonstration; ``all_turns`` lets earlier assistant turns count too."""
        prompt_ids, prompt_mask = self.prompt_ids(demonstration.prompt), None
        if all_turns:
            prompt_mask = self._assistant_mask(demonstration.prompt, prompt_ids)
        response_ids = self.response_ids(demonstration.response)
        return TokenizedExample(
            demonstration.demonstration_id, prompt_ids, response_ids, prompt_mask
        )

    def pair(self, pair: PreferencePair) -> TokenizedPair:
        """Tokens of a pair; both responses follow the very same prompt tokens."""
        return TokenizedPair(
            pair_id=pair.comparison_id,
            prompt_ids=self.prompt_ids(pair.prompt),
            chosen_ids=self.response_ids(pair.chosen),
            rejected_ids=self.response_ids(pair.rejected),
            probability=pair.probability,
        )

    def prompt_ids(self, conversation: Conversation) -> TokenIds:
        """Tokens of a conversation and the template's generation prompt; exactly one BOS.

        Raises:
            DataError: a message holds the text of a special token, or the template refuses it.
        """
        text = self._prompt_text(conversation)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if self.bos_id is None:
            return as_token_ids(ids)
        if self.bos_id in ids:
            raise DataError("the chat template writes BOS more than once")
        return as_token_ids([self.bos_id, *ids])

    def response_ids(self, response: str) -> TokenIds:
        """Tokens of a response, EOS at the end and nowhere else.

        Raises:
            DataError: the response holds the text of a special token.
        """
        self._refuse_unusable_text(response)
        return as_token_ids([*self._continuation(self.lead + response), self.eos_id])

    def response_text(self, ids: TokenIds | list[int]) -> str:
        """Text of sampled response tokens: what follows EOS is dropped, special tokens too."""
        kept = [int(token) for token in ids]
        if self.eos_id in kept:
            kept = kept[: kept.index(self.eos_id)]
        text = self._decode([*self.anchor_ids, *kept])
        return text[len(self._decode(list(self.anchor_ids))) :].removeprefix(self.lead)

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _prompt_text(self, conversation: Conversation) -> str:
        for message in conversation:
            self._refuse_unusable_text(message.content)
        text = apply_template(self.tokenizer, conversation, generation_prompt=True)
        bos = self.tokenizer.bos_token
        return text.removeprefix(bos) if self.bos_id is not None and bos else text

    def _continuation(self, text: str) -> list[int]:
        anchor = ANCHOR if self.anchor_ids else ""
        ids: list[int] = self.tokenizer.encode(anchor + text, add_special_tokens=False)
        return ids[len(self.anchor_ids) :]

    def _refuse_unusable_text(self, text: str) -> None:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError("text holds half of a surrogate pair, which is no character")
        for special in self.special_tokens:
            if special in text:
                raise DataError(f"text holds {special!r}, a special token of the tokenizer")

    def _assistant_mask(self, conversation: Conversation, prompt_ids: TokenIds) -> np.ndarray:
        """[T] True on the tokens of earlier assistant turns, and on an EOS that ends one."""
        text = self._prompt_text(conversation)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = self._assistant_spans(conversation, text)
        offset = len(prompt_ids) - len(encoded["input_ids"])
        mask = np.zeros(len(prompt_ids), dtype=np.bool_)
        for index, (start, end) in enumerate(encoded["offset_mapping"]):
            mask[offset + index] = any(low <= start < end <= high for low, high in spans)
        return mask

    def _assistant_spans(self, conversation: Conversation, text: str) -> list[tuple[int, int]]:
        spans = []
        for turn, message in enumerate(conversation):
            if message.role != "assistant":
                continue
            start = len(self._prompt_text(conversation[:turn]))
            end = text.find(message.content, start)
            if end < 0 or text[start:end].strip():
                raise DataError(
                    f"turn {turn}: the chat template does not keep assistant turns as written, so "
                    "they cannot be trained on; use loss on the response only"
                )
            end += len(message.content)
            eos = str(self.tokenizer.eos_token)
            spans.append((start, end + len(eos) if text.startswith(eos, end) else end))
        return spans


def make_renderer(tokenizer: PreTrainedTokenizerBase) -> Renderer:
    """Probe ``tokenizer`` and its chat template; see ``load_tokenizer`` for one with a template.

    Raises:
        ModelError: the template fails on a plain question, or text does not survive the round trip
            through the tokenizer.
    """
    renderer = Renderer(
        tokenizer=tokenizer,
        eos_id=int(tokenizer.eos_token_id),
        bos_id=_bos_id(tokenizer),
        lead=_lead(tokenizer),
        anchor_ids=_anchor_ids(tokenizer),
        special_tokens=tuple(tokenizer.all_special_tokens),
    )
    _require_sound(renderer)
    return renderer


def apply_template(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, generation_prompt: bool
) -> str:
    """Return the template's text for a conversation.

    Raises:
        DataError: the template refuses the conversation (roles out of order, say).
    """
    messages = [{"role": message.role, "content": message.content} for message in conversation]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation_prompt
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message.role for message in conversation)
        raise DataError(
            f"the chat template refuses a conversation of ({roles}): {error}"
        ) from error
    return str(text)


def _bos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """BOS where the model has one of its own; GPT-2's, which is also its EOS, starts no prompt."""
    bos = tokenizer.bos_token_id
    return None if bos is None or bos == tokenizer.eos_token_id else int(bos)


def _lead(tokenizer: PreTrainedTokenizerBase) -> str:
    question, answer = (
        Message(role="user", content="ping"),
        Message(role="assistant", content="pong"),
    )
    try:
        opening = apply_template(tokenizer, (question,), generation_prompt=True)
        whole = apply_template(tokenizer, (question, answer), generation_prompt=False)
    except DataError as error:
        raise ModelError(f"the chat template fails on a question and an answer: {error}") from error
    lead = whole.removeprefix(opening).split("pong")[0] if whole.startswith(opening) else ""
    return lead if lead.isspace() else ""


def _anchor_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)
    anchored = tokenizer.encode(ANCHOR + "pong", add_special_tokens=False)
    plain = tokenizer.encode("pong", add_special_tokens=False)
    if anchored[: len(anchor)] != anchor or anchored[len(anchor) :] == plain:
        return ()
    return tuple(anchor)


def _require_sound(renderer: Renderer) -> None:
    probe = "One answer, in two sentences. Second: 7!"
    back = renderer.response_text(renderer.response_ids(probe))
    if back != probe:
        raise ModelError(f"text does not survive the tokenizer: {probe!r} became {back!r}")
