"""The cleaning rules that look at one row alone, switched on by the configuration."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import compress
from typing import Protocol

from rlhf_core.config.data import CleaningConfig
from rlhf_core.dataprep.cleaning.contamination import Benchmark, read_benchmark
from rlhf_core.dataprep.cleaning.language import known_languages, other_language, surely_allowed
from rlhf_core.dataprep.cleaning.personal import find_personal_data
from rlhf_core.dataprep.sources.rows import Reason
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Conversation

Problem = tuple[Reason, str]
"""Reason and detail."""
AT_FAULT = {"response a": "a", "response b": "b", "both responses": "both"}
"""How the detail of a token problem begins that lies with responses, and which side is meant."""
Row = tuple[Conversation, Sequence[str]]
"""Prompt and responses."""


class TokenCheck(Protocol):
    """What a tokenizer says of rows."""

    @property
    def room(self) -> tuple[int, int | None]:
        """Tokens of the longest prompt with room for an answer, and of the shortest without."""

    def rows(self, rows: Sequence[Row]) -> list[Problem | None]:
        """Return what is wrong with each row."""

    def prompts(self, prompts: Sequence[Conversation]) -> list[Problem | None]:
        """Return what is wrong with each prompt to sample from."""


@dataclass(frozen=True, slots=True)
class RowRules:
    """Rules for single rows; the cheap ones are asked first."""

    languages: frozenset[str] = frozenset()
    personal_data: tuple[str, ...] = ()
    benchmark: Benchmark | None = None
    token_check: TokenCheck | None = None

    def problems(self, rows: Sequence[Row]) -> list[Problem | None]:
        """Return why each row is filtered out, if so; many rows at once are cheaper."""
        look = _Look(self._surely_allowed(rows), self._surely_unquoting(rows))
        found = [self._words_problem(prompt, responses, look) for prompt, responses in rows]
        if self.token_check is None:
            return found
        open_rows = [row for row, problem in zip(rows, found, strict=True) if problem is None]
        rest = iter(self.token_check.rows(open_rows))
        return [next(rest) if problem is None else problem for problem in found]

    def problem(self, prompt: Conversation, responses: Sequence[str]) -> Problem | None:
        """Return why one row is filtered out, if so."""
        return self.problems([(prompt, responses)])[0]

    def prompt_problem(self, prompt: Conversation) -> Problem | None:
        """Return why a prompt to sample from is filtered out, if so."""
        found = self._words_problem(prompt, (), _Look())
        return found or self.room_problems([prompt])[0]

    def room_problems(self, prompts: Sequence[Conversation]) -> list[Problem | None]:
        """Return why a policy could not answer prompts whose words are known to be sound."""
        if self.token_check is None:
            return [None] * len(prompts)
        return self.token_check.prompts(prompts)

    def _surely_allowed(self, rows: Sequence[Row]) -> Set[str]:
        """Return texts whose language needs no closer look; each of the rows' is asked once."""
        if not self.languages:
            return frozenset()
        texts = list(dict.fromkeys(text for row in rows for text in _texts(*row)))
        return set(compress(texts, surely_allowed(texts, self.languages)))

    def _surely_unquoting(self, rows: Sequence[Row]) -> Set[str]:
        """Return texts that quote no benchmark; each of the rows' is asked once."""
        if self.benchmark is None:
            return frozenset()
        texts = list(dict.fromkeys(text for row in rows for text in _texts(*row)))
        asked = self.benchmark.may_be_quoted_by(texts)
        return {text for text, is_asked in zip(texts, asked, strict=True) if not is_asked}

    def _words_problem(
        self, prompt: Conversation, responses: Sequence[str], look: "_Look"
    ) -> Problem | None:
        for text in _texts(prompt, responses):
            if (found := self._text_problem(text, look)) is not None:
                return found
        return None

    def _text_problem(self, text: str, look: "_Look") -> Problem | None:
        languages = frozenset() if text in look.allowed else self.languages
        if languages and (language := other_language(text, languages)):
            return "wrong_language", f"reads like {language}: {_excerpt(text)}"
        if kind := find_personal_data(text, self.personal_data):
            return "personal_data", kind
        if self.benchmark is None or text in look.unquoting:
            return None
        run = self.benchmark.quoted_by(text)
        return ("benchmark_contamination", f"quotes: {run}") if run else None


@dataclass(frozen=True, slots=True)
class _Look:
    """What a first look at many texts together has told of them."""

    allowed: Set[str] = frozenset()
    """Their language needs no closer look."""
    unquoting: Set[str] = frozenset()
    """They quote no benchmark."""


def _texts(prompt: Conversation, responses: Sequence[str]) -> Iterator[str]:
    yield from (turn.content for turn in prompt)
    yield from responses


def make_rules(cleaning: CleaningConfig, token_check: TokenCheck | None) -> RowRules:
    """Read what the rules need, once.

    Raises:
        ConfigError: a language is unknown.
        DataError: a benchmark file cannot be read.
    """
    if cleaning.languages and (unknown := set(cleaning.languages) - known_languages()):
        raise ConfigError(
            f"data.cleaning.languages: {', '.join(sorted(unknown))} cannot be detected;"
            f" known: {', '.join(sorted(known_languages()))}"
        )
    return RowRules(
        languages=frozenset(cleaning.languages),
        personal_data=cleaning.personal_data,
        benchmark=_benchmark(cleaning),
        token_check=token_check,
    )


def _benchmark(cleaning: CleaningConfig) -> Benchmark | None:
    if not cleaning.contamination:
        return None
    return read_benchmark(cleaning.contamination, cleaning.contamination_columns)


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
