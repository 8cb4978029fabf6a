"""Regular expressions of settings, matched so that none can hold an evaluation up."""

import re
from contextlib import suppress
from typing import Any, Protocol

from rlhf_core.errors import ConfigError

_MAX_SECONDS = 5.0
"""How long one phrase may look at one text: thousands of times what any honest one takes."""
_MAX_PROBES, _PROBE_LENGTH = 12, 200


def finds_anything(pattern: str) -> bool:
    """Say whether a regular expression finds something in every answer, and so tells nothing.

    Raises:
        ValueError: it is not a regular expression that ``compile_phrase`` takes.
    """
    compiled = compile_phrase(pattern)
    return any((found := compiled.search(text)) and not found.group() for text in ("", "a, b"))


def compile_phrase(pattern: str) -> "Phrase":
    r"""Return a phrase's regular expression, case ignored, that cannot hold an evaluation up.

    RE2 matches it, whose time grows with the length of the text alone, whatever the pattern (Cox
    2007, "Regular Expression Matching Can Be Simple And Fast"). Back-references, look-around, and
    ``\b`` and ``\w`` beside letters of no English word are not RE2's: those patterns are matched
    by backtracking with a limit of time.

    Raises:
        ValueError: it is not a regular expression, or takes exponential time on short texts.
    """
    import re2

    options = re2.Options()
    options.case_sensitive, options.log_errors = False, False
    with suppress(re2.error):
        if pattern.isascii() or not re.search(r"(?<!\\)(?:\\\\)*\\[bBwW]", pattern):
            compiled: Phrase = re2.compile(pattern, options)
            return compiled
    return _Backtracking(pattern)


class Phrase(Protocol):
    """A compiled regular expression."""

    def search(self, text: str) -> Any:
        """Return a match, or None."""


class _Backtracking:
    """A pattern that RE2 does not take."""

    def __init__(self, pattern: str) -> None:
        import regex

        try:
            self._compiled = regex.compile(pattern, regex.IGNORECASE)
        except regex.error as error:
            raise ValueError(f"{pattern!r}: {error}") from error
        letters = sorted({letter for letter in pattern if letter.isalnum()} | {" "})
        for letter in letters[:_MAX_PROBES]:
            self.search(letter * _PROBE_LENGTH + "\n")

    def search(self, text: str) -> Any:
        """Return a match, or None.

        Raises:
            ConfigError: it took longer than any phrase should.
        """
        try:
            return self._compiled.search(text, timeout=_MAX_SECONDS)
        except TimeoutError as error:
            raise ConfigError(
                f"evaluation.monitors.phrases: {self._compiled.pattern!r} takes exponential time: "
                f"more than {_MAX_SECONDS:g} s for a text of {len(text):,} characters; write it "
                "without repetitions inside repetitions"
            ) from error
