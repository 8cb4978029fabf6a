"""The cleaning rules that look at one row alone, switched on by the configuration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_core.config.data import CleaningConfig
from rlhf_core.dataprep.contamination import Benchmark, read_benchmark
from rlhf_core.dataprep.language import KNOWN, other_language
from rlhf_core.dataprep.personal import find_personal_data
from rlhf_core.dataprep.rows import Reason
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Conversation

Problem = tuple[Reason, str]
"""Reason and detail."""
TokenCheck = Callable[[Conversation, Sequence[str]], Problem | None]
"""Prompt and responses to the problem a tokenizer has with them."""


@dataclass(frozen=True, slots=True)
class RowRules:
    """Rules for single rows; ``problem`` asks the cheap ones first."""

    languages: frozenset[str] = frozenset()
    personal_data: tuple[str, ...] = ()
    benchmark: Benchmark | None = None
    token_check: TokenCheck | None = None

    def problem(self, prompt: Conversation, responses: Sequence[str]) -> Problem | None:
        """Return why a row is set aside, if so."""
        for text in (*(turn.content for turn in prompt), *responses):
            if (found := self._text_problem(text)) is not None:
                return found
        return self.token_check(prompt, responses) if self.token_check else None

    def _text_problem(self, text: str) -> Problem | None:
        if self.languages and (language := other_language(text, self.languages)):
            return "wrong_language", f"reads like {language}: {_excerpt(text)}"
        if kind := find_personal_data(text, self.personal_data):
            return "personal_data", kind
        if self.benchmark and (run := self.benchmark.quoted_by(text)):
            return "benchmark_contamination", f"quotes: {run}"
        return None


def make_rules(cleaning: CleaningConfig, token_check: TokenCheck | None) -> RowRules:
    """Read what the rules need, once.

    Raises:
        ConfigError: a language is unknown.
        DataError: a benchmark file cannot be read.
    """
    unknown = set(cleaning.languages) - KNOWN
    if unknown:
        raise ConfigError(
            f"data.cleaning.languages: no rule for {', '.join(sorted(unknown))};"
            f" known: {', '.join(sorted(KNOWN))}"
        )
    return RowRules(
        languages=frozenset(cleaning.languages),
        personal_data=cleaning.personal_data,
        benchmark=read_benchmark(cleaning.contamination) if cleaning.contamination else None,
        token_check=token_check,
    )


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
