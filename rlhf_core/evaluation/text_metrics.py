"""What can be counted in texts alone: repeated n-grams, variety, openings."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlhf_core.schema import Estimate
from rlhf_core.statistics.intervals import SHARE, Resampling, estimate_jackknife
from rlhf_core.statistics.resampling import Array

Ngram = tuple[str, ...]
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_LAYOUT = re.compile(
    r"(?m)^\s*(?:[-*+\u2022\u25aa\u2013]\s|\d{1,2}[.)]\s|#{1,6}\s|\||>\s|[\w-]+:\s)|\*\*[^*]+\*\*"
)
_MARKUP = re.compile(
    r"""```|~~~"""  # code
    r"""|</?[A-Za-z][\w:.-]*(?:\s[^<>]*)?/?>|<!\[CDATA\[|<[!?]"""  # XML, HTML
    r"""|[{,\[]\s*(?P<mark>["'])[\w .-]+(?P=mark)\s*:"""  # JSON: a key of an object
    r"""|\\(?:begin|end|boxed|text\w*|section|item)\b|\$\$"""  # LaTeX
    r"""|^\s*[\w.-]+(?:\s*=\s*)?[\[{(].*[\]})]\s*;?\s*$"""  # a call, an assignment
    r"""|^\s*[\[{(].*[\]})]\s*$""",  # all of it in brackets
    re.DOTALL,
)
_SENTENCE_END = re.compile(
    r"[.!?\u2026\u3002\uff01\uff1f\u0964\u061f]+[\"')\]\u201d\u2019]*(?:\s+|$)|\n+"
)
_CLAUSE_END = re.compile(r"[.!?:;,\u2026\u3002\uff01\uff1f\uff1a\uff0c\u3001\n]+")
_LEAST_WORDS = 3
"""Of a clause that is about something."""
_ROWS, _EQUAL = 1_000, 1e-12
_CUT = re.compile(r"[\w,;:(\[\u2013-]\s*$")
_MOST_SIGNS = 0.15
"""Of a text's characters: prose has some 0.04, emoji or dots between words 0.3."""
_LEAST_SIGNS = 6
_SIGN = re.compile(r"[^\w ']|_|(?<=\s)\s")
_LEAST_CASED = 8
"""Letters of a text in capitals that is more than an abbreviation."""
_CURLY_APOSTROPHE = "\u2019"


def words_of(text: str) -> list[str]:
    """Words in lower case, punctuation left out."""
    return _WORD.findall(straight(text).lower())


def straight(text: str) -> str:
    """The text with straight apostrophes."""
    return text.replace(_CURLY_APOSTROPHE, "'")


def ngrams(words: Sequence[str], n: int) -> list[Ngram]:
    """All runs of n words, in order."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def repetition(text: str, *, n: int) -> float:
    """Share of a text's word n-grams that it has said before; 0 for a text too short to repeat.

    1 - distinct n-grams / n-grams
    """
    grams = ngrams(words_of(text), n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_share(texts: Sequence[str], plan: Resampling, *, n: int) -> Estimate:
    """Distinct n-grams over all n-grams of a set of texts, with a jackknife interval.

        distinct_n = |distinct n-grams| / |n-grams|

    Li et al. (2016), arXiv:1510.03055, section 5. Compare it only between sets of equal size: it
    falls as texts are added.

    Where no text has n words the value is 0 and the interval open: nothing was seen.
    """
    grams = _grams_by_unit(texts, plan, n)
    counts = Counter(gram for text in grams for gram in text)
    total = sum(counts.values())
    if not total:
        low, high = SHARE
        return Estimate(
            value=0.0, low=low, high=high, num_samples=len(grams), confidence=plan.level
        )
    value = len(counts) / total
    left = [_distinct_without(text, counts, total) for text in grams]
    return estimate_jackknife(value, left, plan, bounds=SHARE)


def distinct_ratio(
    texts: Sequence[str], others: Sequence[str], plan: Resampling, *, n: int
) -> Estimate:
    """``distinct_n`` of one model's texts over that of another's to the same prompts.

    The interval is the jackknife's, each prompt left out of both. Where no text of the other model
    has n words nothing was seen: 0, and the interval is open.
    """
    both = [_grams_by_unit(each, plan, n) for each in (texts, others)]
    counts = [Counter(gram for unit in units for gram in unit) for units in both]
    totals = [sum(each.values()) for each in counts]
    open_end = (0.0, math.inf)
    if not totals[1]:
        return Estimate(
            value=0.0, low=0.0, high=math.inf, num_samples=len(both[1]), confidence=plan.level
        )
    shares = [
        [_distinct_without(unit, count, total) for unit in units]
        for units, count, total in zip(both, counts, totals, strict=True)
    ]
    left = [own / other if other else 0.0 for own, other in zip(*shares, strict=True)]
    own, other = (
        len(count) / total if total else 0.0 for count, total in zip(counts, totals, strict=True)
    )
    return estimate_jackknife(own / other, left, plan, bounds=open_end)


def _grams_by_unit(texts: Sequence[str], plan: Resampling, n: int) -> list[list[Ngram]]:
    """Return the n-grams of each text; of each topic, where topics are the units."""
    grams = [ngrams(words_of(text), n) for text in texts]
    if plan.clusters is None:
        return grams
    by_topic: dict[int, list[Ngram]] = {}
    for topic, text in zip(plan.clusters.tolist(), grams, strict=True):
        by_topic.setdefault(topic, []).extend(text)
    return list(by_topic.values())


def _distinct_without(text: Sequence[Ngram], counts: Counter[Ngram], total: int) -> float:
    own = Counter(text)
    only_here = sum(counts[gram] == count for gram, count in own.items())
    rest = total - len(text)
    return (len(counts) - only_here) / rest if rest else 0.0


def common_opening(texts: Sequence[str], *, num_words: int) -> Array:
    """1 for each text that begins with the set's most common opening words: [n].

    Ties go to the opening that comes first in the alphabet, so the answer does not depend on order.
    """
    openings = [" ".join(words_of(text)[:num_words]) for text in texts]
    counts = Counter(openings)
    top = min(counts, key=lambda opening: (-counts[opening], opening))
    return np.array([float(opening == top) for opening in openings])


def duplicates(texts: Sequence[str], prompts: Sequence[str]) -> Array:
    """1 for each text given, word for word, to another prompt as well: [n]."""
    keys = [" ".join(words_of(text)) for text in texts]
    seen: dict[str, set[str]] = {}
    for key, prompt in zip(keys, prompts, strict=True):
        seen.setdefault(key, set()).add(prompt)
    return np.array([float(len(seen[key]) > 1) for key in keys])


def shared_shares(texts: Sequence[str], prompts: Sequence[str], *, n: int) -> Array:
    """Share of each text's word n-grams that a text to another prompt has as well: [n texts].

    The n-gram precision of Self-BLEU, every other text a reference: Zhu et al. (2018, Texygen),
    arXiv:1802.01886, section 3.2. Compare it only between sets of equal size: it rises as texts are
    added. 0 for a text of fewer words.
    """
    grams = [ngrams(words_of(text), n) for text in texts]
    first: dict[Ngram, str] = {}
    shared: set[Ngram] = set()
    for own, prompt in zip(grams, prompts, strict=True):
        shared.update(gram for gram in own if first.setdefault(gram, prompt) != prompt)
    return np.array(
        [sum(gram in shared for gram in own) / len(own) if own else 0.0 for own in grams],
        dtype=np.float64,
    )


def copied_share(text: str, prompt: str, *, n: int) -> float:
    """Share of a text's word n-grams that stand in the prompt; 0 for a text too short to copy."""
    grams = ngrams(words_of(text), n)
    source = set(ngrams(words_of(prompt), n))
    return sum(gram in source for gram in grams) / len(grams) if grams else 0.0


def echoed_share(text: str, turns: Sequence[str]) -> float:
    """How far the words of a text and of a turn before it are the same, in whatever order: [0, 1].

        echo = max(0, words of both that they share, less those they do not, over all words of both)

    That is 2 Dice - 1 of the bags of words (Dice, 1945, doi:10.2307/1932409), of the turn that is
    nearest. 1 for the turn's own words, 1/3 with every third one altered, and 0 for an answer of
    which half of the words are its own, however many names it takes from the question.
    """
    spoken = Counter(words_of(text))
    shares = [_dice(spoken, Counter(words_of(turn))) for turn in turns]
    return max(0.0, 2.0 * max(shares, default=0.0) - 1.0)


def _dice(one: Counter[str], other: Counter[str]) -> float:
    total = one.total() + other.total()
    return 2.0 * (one & other).total() / total if total else 0.0


def off_topic(texts: Sequence[str], prompts: Sequence[str]) -> Array:
    """Share of the other prompts that each text is at least as near to as to its own: [n].

    Near 0 for answers to what was asked; 0.5 for one answer to everything, another prompt's
    answer, or words that fit any prompt. Nearness is the cosine of TF-IDF vectors of character
    3- to 5-grams; a tie is half, and a prompt of the same words is no other prompt. Of a text with
    several clauses the one that is farthest off counts, so that no word of the prompt put before
    another prompt's answer makes it an answer.
    """
    keys = [" ".join(words_of(prompt)) for prompt in prompts]
    parts = [(row, part) for row, text in enumerate(texts) for part in _clauses(text)]
    if len(set(keys)) < 2 or not any(keys) or not any(part for _, part in parts):
        return np.full(len(texts), 0.5 if len(set(keys)) > 1 else 0.0)
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit(keys)
    asked, names = vectorizer.transform(keys).T, np.array(keys)
    farthest = np.zeros(len(texts))
    for start in range(0, len(parts), _ROWS):
        rows = np.array([row for row, _ in parts[start : start + _ROWS]])
        spoken = vectorizer.transform([part for _, part in parts[start : start + _ROWS]])
        near = (spoken @ asked).toarray()
        own = near[np.arange(len(rows)), rows][:, None]
        other = names[rows][:, None] != names[None, :]
        nearer = (near > own + _EQUAL) + 0.5 * (np.abs(near - own) <= _EQUAL)
        np.maximum.at(farthest, rows, (nearer * other).sum(axis=1) / other.sum(axis=1))
    return farthest


def _clauses(text: str) -> list[str]:
    """The words of a text's clauses of some length; of all of it where there is none."""
    spoken = [words_of(part) for part in _CLAUSE_END.split(text)]
    long = [" ".join(words) for words in spoken if len(words) >= _LEAST_WORDS]
    return long or [" ".join(words_of(text))]


def novel_shares(texts: Sequence[str], prompts: Sequence[str], others: Sequence[str]) -> Array:
    """Share of each text's words that its prompt and all of the other model's texts lack: [n].

    Compared between two models it is 0 where both draw on one vocabulary, however large; it grows
    where one of them says something of its own, in whatever words.
    """
    known = {word for text in others for word in words_of(text)}
    shares = []
    for text, prompt in zip(texts, prompts, strict=True):
        words, asked = words_of(text), set(words_of(prompt))
        novel = sum(word not in known and word not in asked for word in words)
        shares.append(novel / len(words) if words else 0.0)
    return np.array(shares, dtype=np.float64)


def stray_orders(texts: Sequence[str], prompts: Sequence[str], others: Sequence[str]) -> Array:
    """Share of each text's word pairs that are known words in an order nobody uses: [n texts].

    Known is what one of ``others``, the answers of a model to the same prompts, has in answer to
    another prompt, or the own prompt has. Between the answers of two models it is near 0 for any
    that write sentences of the same kind, and up where words are strung together.
    """
    pairs = [set(ngrams(words_of(other), 2)) for other in others]
    words = [set(words_of(other)) for other in others]
    pair_counts = Counter(pair for own in pairs for pair in own)
    word_counts = Counter(word for own in words for word in own)
    shares = []
    for index, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        asked = words_of(prompt)
        asked_words, asked_pairs = set(asked), set(ngrams(asked, 2))

        def known(word: str, i: int = index, asked_words: set[str] = asked_words) -> bool:
            return word in asked_words or word_counts[word] > (word in words[i])

        seen = [pair for pair in ngrams(words_of(text), 2) if all(map(known, pair))]
        stray = sum(
            pair not in asked_pairs and pair_counts[pair] <= (pair in pairs[index]) for pair in seen
        )
        shares.append(stray / len(seen) if seen else 0.0)
    return np.array(shares, dtype=np.float64)


def stock_sentences(texts: Sequence[str], prompts: Sequence[str]) -> Array:
    """1 for each text with the sentence that most prompts are answered with, wherever: [n].

    Ties go to the sentence that comes first in the alphabet.
    """
    spoken = [
        {" ".join(words_of(one)) for one in _SENTENCE_END.split(text)} - {""} for text in texts
    ]
    prompted: dict[str, set[str]] = {}
    for own, prompt in zip(spoken, prompts, strict=True):
        for sentence in own:
            prompted.setdefault(sentence, set()).add(prompt)
    if not prompted:
        return np.zeros(len(texts))
    top = min(prompted, key=lambda sentence: (-len(prompted[sentence]), sentence))
    return np.array([float(top in own) for own in spoken])


def ends_midway(text: str) -> bool:
    """Say whether a text ends with a word, a comma or a dash, and not as sentences end."""
    return bool(_CUT.search(text))


def has_layout(text: str) -> bool:
    """Say whether a text has something else in place of plain sentences.

    That is lists, headings, labels, tables, emphasis, code, markup or data (JSON, XML, LaTeX, all
    of it in brackets), capitals throughout, or signs and line breaks in place of more than every
    seventh character.
    """
    cased = [one for one in text if one.isupper() or one.islower()]
    capitals = sum(map(str.isupper, cased))
    signs = len(_SIGN.findall(text))
    return (
        bool(_LAYOUT.search(text) or _MARKUP.search(text))
        or (len(cased) >= _LEAST_CASED and capitals > len(cased) / 2)
        or (signs >= _LEAST_SIGNS and signs > _MOST_SIGNS * len(text))
    )
