"""Token counts by the word: of a byte-level BPE tokenizer each word of a text is encoded once.

Its pre-tokenizer cuts text into pieces before BPE merges anything, and none of its patterns goes
from a letter or sign on over a space: at such a space two texts have the tokens that each has
alone. So a text's tokens are those of its words, each with the space before it.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_core.dataprep.words import words_of

if TYPE_CHECKING:
    from rlhf_core.tokenization import Renderer

_WITH_MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = (_WITH_MARKS % r"\p{N}{1,3}", _WITH_MARKS % r"\p{N}")
"""Of Llama 3 and of Qwen 2 and 3; that of GPT-2 is ``ByteLevel``'s own."""
_BOUNDARY = re.compile(r"(?<=\S) ")
"""The space at which a text may be taken apart."""
_UNTOLD = -(1 << 40)
"""In place of a count: a sum that one of these is part of is below zero."""
_LONGEST_WORD = 64
"""What is longer comes once, or is a text without spaces."""
_LONGEST_IN_PROMPT = 256
"""With the marks of turns around it."""
_MOST_WORDS = 100_000
_MOST_MARKS = 4_096
_LOSSY = "\ufffd"
"""Also what decoders write for bytes that are no text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt whose tokens are known to be sound."""

    num_tokens: int
    mark: str
    """How it ends: what stands behind its last control token, or its last word."""


class WordTokens:
    """Counts tokens where all is well, and tells nothing where it is not."""

    def __init__(self, renderer: "Renderer", backend: Any) -> None:
        """Count for a renderer whose tokenizer ``cuts_at_spaces``."""
        self._backend = backend
        self._turns = renderer.turns
        self._turn_end = renderer.turn_end_id
        self._controls = frozenset(renderer.control_ids)
        self._forbidden = self._controls | set(renderer.end_ids)
        self._words = _Counts(self._count_word)
        self._last_words = _Counts(self._count_last)
        self._prompt_words = _Counts(self._count_in_prompt, _LONGEST_IN_PROMPT)
        self._first_words: dict[str, _Counts] = {}
        self._only_words: dict[str, _Counts] = {}
        self._marks: dict[str, str | None] = {}
        """Last word of a prompt to its mark."""

    def prompts(self, texts: Sequence[str]) -> list[Prompt | None]:
        """Return what is known of rendered prompts; None where that takes a closer look."""
        words = words_of(texts)
        between = words.sums_between(self._count_between)
        parts = zip(texts, words.first(), between, words.last(), strict=True)
        return [self._prompt(*part) for part in parts]

    def _prompt(self, text: str, first: str, num_between: int, last: str) -> Prompt | None:
        if first == text:
            return self._known(self._prompt_words[text], text)
        last = f" {last}"
        num_first = self._prompt_words[first] if _ends_in_word(first) else _UNTOLD
        num_tokens = num_first + num_between + self._prompt_words[last]
        if num_tokens >= 0:
            return self._known(num_tokens, last)
        # Where several spaces or line breaks meet, words are harder to see.
        words = _BOUNDARY.split(text)
        spaced = [words[0], *(f" {word}" for word in words[1:])]
        return self._known(sum(map(self._prompt_words.__getitem__, spaced)), spaced[-1])

    def _known(self, num_tokens: int, last: str) -> Prompt | None:
        if num_tokens < 0:
            return None
        if last not in self._marks:
            if len(self._marks) >= _MOST_MARKS:
                self._marks.clear()
            self._marks[last] = self._mark(last)
        mark = self._marks[last]
        return None if mark is None else Prompt(num_tokens, mark)

    def answers(self, rows: Sequence[tuple[Prompt, str, str]]) -> list[int | None]:
        """Return the tokens of answers, the end of the turn among them; None as for ``prompts``.

        Args:
            rows: what each answer stands behind; the rendering from there on, up to the end of
                the turn where that is written; and the answer as it was given.
        """
        framed = [_framed(text, said) for _, text, said in rows]
        words = words_of([said for _, said, _ in framed])
        between = words.sums_between(self._words.__getitem__)
        parts = zip(rows, framed, words.first(), between, words.last(), strict=True)
        return [
            self._answer(
                prompt.mark, text, text if first == said else before + first, num, last + after
            )
            for (prompt, text, _), (before, said, after), first, num, last in parts
        ]

    def _answer(self, mark: str, text: str, first: str, num_between: int, last: str) -> int | None:
        edges = [first] if first == text else [first, last]
        num_tokens = num_between + self._sum(mark, edges)
        if num_tokens < 0:  # as for prompts
            num_tokens = self._sum(mark, _BOUNDARY.split(text))
        if num_tokens < 0:
            return None
        return num_tokens + (0 if self._turns.is_written else 1)

    def _sum(self, mark: str, words: list[str]) -> int:
        if len(words) == 1:
            return self._behind(mark, self._only_words, is_last=True)[words[0]]
        first, *middle, last = words
        return (
            self._behind(mark, self._first_words, is_last=False)[first]
            + sum(map(self._words.__getitem__, middle))
            + self._last_words[last]
        )

    def _behind(self, mark: str, known: "dict[str, _Counts]", *, is_last: bool) -> "_Counts":
        """Counts of words that stand behind a prompt's end and join its last piece, or do not."""
        found = known.get(mark)
        if found is None:
            if len(known) >= _MOST_MARKS:
                known.clear()
            before = self._ids(mark)
            found = known[mark] = _Counts(
                lambda word: self._count(mark + word, before, is_last=is_last)
            )
        return found

    def _count_between(self, word: str) -> int:
        return self._prompt_words[f" {word}"] if _ends_in_word(word) else _UNTOLD

    def _count_word(self, word: str) -> int:
        return self._count(f" {word}", [], is_last=False)

    def _count_last(self, word: str) -> int:
        return self._count(f" {word}", [], is_last=True)

    def _count(self, text: str, before: list[int], *, is_last: bool) -> int:
        """Tokens of part of an answer behind those of ``before``, the end of the turn included."""
        if not is_last and not _ends_in_word(text):
            return _UNTOLD
        ids, said = self._ids(text), text
        if is_last and self._turns.is_written:
            if ids[-1:] != [self._turn_end] or not text.endswith(self._turns.end):
                return _UNTOLD
            ids, said = ids[:-1], text[: -len(self._turns.end)]
        is_sound = ids[: len(before)] == before and self._forbidden.isdisjoint(ids)
        if not is_sound or not self._comes_back(said, ids, skip_special_tokens=True):
            return _UNTOLD
        return len(ids) - len(before) + (is_last and self._turns.is_written)

    def _count_in_prompt(self, text: str) -> int:
        """Tokens of part of a prompt, with no more control tokens than are written in it."""
        ids = self._ids(text)
        written = len(self._turns.control_pattern.findall(text))
        is_forged = sum(token in self._controls for token in ids) > written
        if is_forged or not self._comes_back(text, ids, skip_special_tokens=False):
            return _UNTOLD
        return len(ids)

    def _mark(self, last_word: str) -> str | None:
        """The end of a prompt that an answer's first letters could join; None where it is long."""
        found = list(self._turns.control_pattern.finditer(last_word))
        mark = last_word[found[-1].end() :] if found else last_word
        if len(mark) > _LONGEST_WORD:
            return None
        if found:
            ids, behind = self._ids(last_word), self._ids(mark)
            control = ids[: len(ids) - len(behind)][-1:]
            if ids[len(ids) - len(behind) :] != behind or self._controls.isdisjoint(control):
                return None
        return mark

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return found

    def _comes_back(self, text: str, ids: list[int], *, skip_special_tokens: bool) -> bool:
        back = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return back == text and _LOSSY not in text


def _framed(text: str, said: str) -> tuple[str, str, str]:
    """Return what is written before an answer, the answer, and what is written behind it.

    Where that joins its first and last word, the words between are those of the answer alone, of
    which other checks know. Where it does not, all is the answer.
    """
    if said and text.startswith(said):  # most often; it takes no search
        before, found, after = "", said, text[len(said) :]
    else:
        before, found, after = text.partition(said) if said else ("", "", "")
    return (before, said, after) if found and " " not in before + after else ("", text, "")


class _Counts(dict[str, int]):
    """Counts of words, remembered; of what is too long for a word nothing is told."""

    def __init__(self, count: Callable[[str], int], longest: int = _LONGEST_WORD) -> None:
        super().__init__()
        self._count = count
        self._longest = longest

    def __missing__(self, word: str) -> int:
        if len(word) > self._longest:
            return _UNTOLD
        if len(self) >= _MOST_WORDS:
            self.clear()
        self[word] = found = self._count(word)
        return found


def _ends_in_word(text: str) -> bool:
    return bool(text) and not text[-1].isspace()


def cuts_at_spaces(backend: Any) -> bool:
    """Tell whether a tokenizer takes a text apart at every space behind a letter or sign.

    That is so of byte-level BPE with the pre-tokenizers of GPT-2, Llama 3 and Qwen; NFC joins
    nothing over a space.
    """
    steps = _steps_of(backend.pre_tokenizer)
    is_known = bool(steps) and all(map(_keeps_words_apart, steps)) and any(map(_cuts, steps))
    return (
        is_known
        and type(backend.model).__name__ == "BPE"
        and backend.model.dropout is None
        and type(backend.decoder).__name__ == "ByteLevel"
        and type(backend.normalizer).__name__ in ("NoneType", "NFC")
        and backend.truncation is None
        and backend.padding is None
        and _are_plain(list(backend.get_added_tokens_decoder().values()))
    )


def _steps_of(pre_tokenizer: Any) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    state = json.loads(pre_tokenizer.__getstate__())
    steps: list[dict[str, Any]] = state.get("pretokenizers", [state])
    return steps


def _keeps_words_apart(step: dict[str, Any]) -> bool:
    return _cuts(step) or step["type"] == "Digits" or _is_bytes(step)


def _cuts(step: dict[str, Any]) -> bool:
    if step["type"] == "Split":
        is_plain = step["behavior"] == "Isolated" and not step["invert"]
        return is_plain and step["pattern"].get("Regex") in _PATTERNS
    return _is_bytes(step) and step["use_regex"]


def _is_bytes(step: dict[str, Any]) -> bool:
    return step["type"] == "ByteLevel" and not step["add_prefix_space"]


def _are_plain(added: list[Any]) -> bool:
    """Added tokens take no space along, are found in any company, and none is part of another."""
    texts = [token.content for token in added]
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return False
    if any(_BOUNDARY.search(text) for text in texts):
        return False
    return not any(
        text != other and text in other for text in filter(str.strip, texts) for other in texts
    )
