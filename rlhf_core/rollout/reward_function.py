"""A reward function of the user's, in a process of its own: what hangs there can be ended.

``python -m rlhf_core.rollout.reward_function KEY SPEC PATH...`` is that process: a line of JSON in,
a line of JSON out. What the function prints goes to standard error.
"""

import inspect
import json
import math
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

from rlhf_core.config.functions import function_sha256, load_function
from rlhf_core.errors import ConfigError, RewardError
from rlhf_core.orphans import end_with_asker
from rlhf_core.schema import Prompt

START_LIMIT = 120.0
"""Seconds until the process has loaded the function, imports of the user's included."""
_CONVERSATION = "conversation"
"""A parameter of this name is given all turns of the prompt."""


class RewardFunction:
    """Calls the function that ``spec`` names, within a time limit; ``close`` ends its process."""

    def __init__(self, key: str, spec: str, *, time_limit: float) -> None:
        """Start the process and load the function there.

        Raises:
            ConfigError: this process may not load it, there is no such module or function, or it
                does not take a prompt, a response and a reference.
        """
        function_sha256(key, spec)
        self.key, self.spec, self.time_limit = key, spec, time_limit
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            # Where this process found the function's module, its own has to find it too.
            [sys.executable, "-m", "rlhf_core.rollout.reward_function", key, spec, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            loaded = self._answer(START_LIMIT, "loading it")
            if "error" in loaded:
                raise ConfigError(loaded["error"])
        except BaseException:
            self.close()
            raise

    def __call__(self, prompt: Prompt, response: str) -> float:
        """Score one response.

        Raises:
            RewardError: it took too long, raised, died, or returned no finite number.
        """
        said = prompt.prompt[-1].content
        asked = f"the response {response[:80]!r} to {said[:80]!r}"
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt.prompt]
        line = json.dumps([said, response, prompt.reference, turns]).encode() + b"\n"
        try:
            self._pipe(self._process.stdin).write(line)
            self._pipe(self._process.stdin).flush()
        except OSError as error:
            raise RewardError(f"{self.key}: the process of {self.spec} died, at {asked}") from error
        answer = self._answer(self.time_limit, asked)
        if "error" in answer:
            raise RewardError(f"{self.key}: {self.spec} {answer['error']}, at {asked}")
        return float(answer["score"])

    def close(self) -> None:
        """End the process; a call that hangs is ended with it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            self._pipe(stream).close()

    def _answer(self, limit: float, asked: str) -> Mapping[str, Any]:
        stream = self._pipe(self._process.stdout)
        ready, _, _ = select.select([stream], [], [], limit)
        if not ready:
            self._process.kill()
            raise RewardError(
                f"{self.key}: {self.spec} took longer than {limit:g} s (time_limit), at {asked}"
            )
        line = stream.readline()
        if not line:
            raise RewardError(f"{self.key}: the process of {self.spec} died, at {asked}")
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    @staticmethod
    def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
        if stream is None:
            raise RewardError("the process of a reward function has no pipe")
        return stream


def _serve(key: str, spec: str, *places: str) -> None:
    end_with_asker()
    # Ctrl-C in a terminal reaches this process too: the one that asks ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.extend(place for place in places if place not in sys.path)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        try:
            function = load_function(key, spec)
            takes_conversation = _takes_conversation(key, spec, function)
        except ConfigError as error:
            return _say(answers, {"error": str(error)})
        _say(answers, {})
        for line in sys.stdin:
            *asked, turns = json.loads(line)
            keywords = {_CONVERSATION: turns} if takes_conversation else {}
            _say(answers, _result(function, asked, keywords))


def _takes_conversation(key: str, spec: str, function: Any) -> bool:
    try:
        signature = inspect.signature(function)
    except ValueError:  # one written in C may not say what it takes
        return False
    takes = _CONVERSATION in signature.parameters
    try:
        signature.bind("", "", None, **({_CONVERSATION: []} if takes else {}))
    except TypeError as error:
        raise ConfigError(
            f"{key}: {spec} takes {signature}; expected (prompt, response, reference), and if it "
            f"wants all turns of the prompt, a fourth parameter {_CONVERSATION}"
        ) from error
    return takes


def _result(function: Any, asked: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    try:
        score = function(*asked, **keywords)
    except Exception as error:
        return {"error": f"raised {type(error).__name__}: {error}"}
    try:
        number = math.nan if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        return {"error": f"returned {str(score)[:80]!r}, expected a finite number"}
    return {"score": number}


def _say(answers: IO[str], value: object) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
