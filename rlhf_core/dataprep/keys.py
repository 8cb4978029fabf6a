"""Short digests that stand for texts: what is the same prompt, the same response, the same pair."""

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import NewType

from rlhf_core.schema import Conversation

Key = bytes
"""16 bytes; equal keys mean equal normalised texts."""
DialogueKey = NewType("DialogueKey", Key)
"""Of all prompts that open alike: the turns of one dialogue, each asked as a prompt of its own."""

UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters: no spaces stand between their words."""
_MARKS = ".,;:!?…()[]{}\"'“”\u2018\u2019«»。、「」『』"
"""Punctuation that changes no word it stands at; signs, as in -1 and C#, do."""


_WIDTHS = {
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (0x3000, *range(0xFF01, 0xFFEF))
    if unicodedata.decomposition(chr(code)).startswith(("<wide>", "<narrow>"))
}
"""Wide letters and narrow kana to the usual ones. What else NFKC folds is to be seen: the square in
2² is no second 2."""


_OTHER_SPACE = "\n\t\r\v\f\x1c\x1d\x1e\x1f"
"""White space of ASCII besides the space itself."""


def normalise(text: str) -> str:
    """Fold what a reader would not notice: Unicode form, width, letter case, white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(_WIDTHS))
    folded = text.casefold()
    return folded if _is_evenly_spaced(folded) else " ".join(folded.split())


def _is_evenly_spaced(text: str) -> bool:
    """Tell, where that is quick, that taking a text apart and joining it gives it back."""
    if not text.isascii() or text.startswith(" ") or text.endswith(" ") or "  " in text:
        return False
    return not any(map(text.__contains__, _OTHER_SPACE))


def bare(word: str) -> str:
    """Return a word without the punctuation around it; punctuation alone stays."""
    return word.strip(_MARKS) or word


def conversation_key(conversation: Conversation) -> Key:
    """Return the key of a prompt; two prompts that read the same have the same key."""
    return text_key(
        "\x1e".join(f"{turn.role}\x1f{normalise(turn.content)}" for turn in conversation)
    )


def first_turn(conversation: Conversation) -> Conversation:
    """Return what every later turn of a dialogue repeats: its first user turn.

    System messages say how to answer and not what was asked: one file has them where another has
    none, and some name the day. A conversation in which nobody asks is returned whole.
    """
    return next(((turn,) for turn in conversation if turn.role == "user"), conversation)


def dialogue_key(conversation: Conversation) -> DialogueKey:
    """Return the key of the dialogue that a prompt is part of; of a user turn alone, its own."""
    return DialogueKey(conversation_key(first_turn(conversation)))


def prompt_keys(conversation: Conversation) -> tuple[Key, DialogueKey]:
    """Return the keys of a prompt and of its dialogue; most have one turn and are read once."""
    start, prompt = first_turn(conversation), conversation_key(conversation)
    if len(start) == len(conversation):
        return prompt, DialogueKey(prompt)
    return prompt, DialogueKey(conversation_key(start))


def response_key(text: str) -> Key:
    """Return the key of a response."""
    return text_key(normalise(text))


def response_keys(first: str, second: str) -> tuple[Key, Key]:
    """Return the keys of two responses to one prompt, which must be distinguished.

    Where letter case or white space is all that differs, as in indented code, it is what people
    voted on: then the texts themselves are the keys, white space at the ends aside.
    """
    return distinct_keys((response_key(first), response_key(second)), first, second)


def distinct_keys(keys: tuple[Key, Key], first: str, second: str) -> tuple[Key, Key]:
    """Return ``response_keys`` of two responses, of each of which the key is known."""
    if keys[0] != keys[1]:
        return keys
    return text_key(first.strip()), text_key(second.strip())


def text_key(text: str) -> Key:
    """Return the key of a text exactly as it is."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def content_id(prefix: str, *parts: str) -> str:
    """Return an id that depends on the content alone, for rows that bring none."""
    return f"{prefix}-{text_key(chr(0x1E).join(parts)).hex()[:16]}"


def source_name(path: Path) -> str:
    """Return the name a file's rows carry: ``helpful-base.test.jsonl.gz`` gives its first part."""
    name = path.name
    for suffix in (
        ".gz",
        ".zst",
        ".jsonl",
        ".ndjson",
        ".json",
        ".parquet",
        ".csv",
        ".tsv",
        ".xlsx",
    ):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def unit_interval(seed: int, purpose: str, key: Key) -> float:
    """Return a number in [0, 1) fixed by ``seed``, ``purpose`` and ``key``, uniform over keys."""
    digest = hashlib.blake2b(f"{seed}:{purpose}:".encode() + key, digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
