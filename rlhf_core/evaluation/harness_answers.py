"""Ask a model the tasks of lm-evaluation-harness: a score an item, every answer kept at once."""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.config.suites import LmEvalSuiteConfig
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation.harness import FEWSHOT_SEED, HarnessTask, harness
from rlhf_core.evaluation.suites import ItemAnswer
from rlhf_core.schema import Conversation, Message, Record
from rlhf_core.storage.journal import appending, read_journal

_BATCHES_AT_ONCE = 4
"""Batches computed, and kept, together."""


class KeptAnswers(Record):
    """What a model said to some requests in a row."""

    asked: str
    """Sha256 of the requests."""
    said: tuple[Any, ...]


@dataclass(frozen=True)
class Asked:
    """How a model is asked."""

    suite: LmEvalSuiteConfig
    max_new_tokens: int
    """Where neither suite nor task says it."""
    journal: Path
    """Keeps the answers of this model to this suite."""
    told: Callable[[str, int, int], None]
    """Hears of what is asked, how many answers there are and how many there will be."""


def harness_answers(
    tasks: Sequence[HarnessTask],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
) -> list[ItemAnswer]:
    """Return a scored answer to each item of each task, in the order of the tasks.

    Stopped at any place and asked again it goes on from the journal, and gives the same.

    Raises:
        ConfigError: a chat template is asked for, and the model has none.
        DataError: an item is too long for the model; an item's metric is no score from 0 to 1.
    """
    lm_eval = harness(f"evaluation.suites: {asked.suite.name}")
    chat = _through_template(asked.suite, tokenizer)
    found: list[ItemAnswer] = []
    for one in tasks:
        one.task.set_fewshot_seed(seed=FEWSHOT_SEED)
        _limit_answer(one.task, asked)
        answerer = _Answerer(lm_eval, model, tokenizer, asked, one)
        with _seeded():
            try:
                results = lm_eval.evaluate(
                    answerer,
                    {"tasks": {one.task.task_name: one.task}, "groups": {}, "group_map": {}},
                    limit=asked.suite.limit,
                    bootstrap_iters=0,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                )
            except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
                if isinstance(error, ConfigError | DataError):
                    raise
                said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                raise DataError(
                    f"{one.where}: an item cannot be asked or scored: {said}"
                ) from error
        rows = results["samples"][one.task.task_name]
        found += [
            _scored(one, row, answerer.conversations) for row in rows if row["filter"] == one.filter
        ]
    return found


def _through_template(suite: LmEvalSuiteConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    has_one = bool(getattr(tokenizer, "chat_template", None))
    if suite.chat_template and not has_one:
        raise ConfigError(
            f"evaluation.suites: {suite.name}: chat_template: the model's tokenizer has none; "
            "leave it out, or say false"
        )
    return has_one if suite.chat_template is None else suite.chat_template


def _limit_answer(task: Any, asked: Asked) -> None:
    """Say how long a written answer may be: the suite, or the task, or the evaluation."""
    if task.OUTPUT_TYPE != "generate_until":
        return
    own = task.get_config("generation_kwargs") or {}
    limits = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "max_length")
    longest = asked.suite.max_new_tokens
    if longest is None and not set(limits) & set(own):
        longest = asked.max_new_tokens
    if longest is not None:
        kept = {key: value for key, value in own.items() if key not in limits}
        task.set_config(key="generation_kwargs", value={**kept, "max_gen_toks": longest})


@contextmanager
def _seeded() -> Iterator[None]:
    """Let what a task draws unasked repeat, and leave everybody else's random numbers alone."""
    plain, arrays = random.getstate(), np.random.get_state()
    random.seed(FEWSHOT_SEED)
    np.random.seed(FEWSHOT_SEED)
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)


class _Answerer:
    """The harness's model: its ``HFLM``, a few batches at a time, each kept when it is there."""

    rank, world_size = 0, 1

    def __init__(
        self,
        lm_eval: Any,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        asked: Asked,
        one: HarnessTask,
    ) -> None:
        from lm_eval.models.huggingface import HFLM

        self.asked, self.one = asked, one
        self.model = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=asked.suite.batch_size,
            backend="causal",
        )
        self.conversations: dict[str, Conversation] = {}
        """What each prompt was before the template wrote it, for people to read."""
        self.tokenizer_name = self.model.tokenizer_name

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the model reads it."""
        history = list(chat_history)
        text = str(
            self.model.apply_chat_template(history, add_generation_prompt=add_generation_prompt)
        )
        self.conversations[text] = tuple(Message.model_validate(turn) for turn in history)
        return text

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return log-probability in nats, and whether it is the greedy one, of continuations."""
        for request in requests:
            context, continuation = request.args
            # The last token is predicted and never read.
            self._require_room(context + continuation, -1)
        said = self._said("loglikelihood", requests)
        return [(float(nats), bool(greedy)) for nats, greedy in said]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the text that the model writes after each context."""
        for request in requests:
            context, settings = request.args
            self._require_room(context, int(settings.get("max_gen_toks", 0)))
        return [str(text) for text in self._said("generate_until", requests)]

    def _require_room(self, text: str, more: int) -> None:
        length, most = len(self.model.tok_encode(text)) + more, self.model.max_length
        if length > most:
            answer = f" and an answer of {more}" if more > 0 else ""
            raise DataError(
                f"{self.one.where}: an item of {length - max(more, 0)} tokens{answer} does not fit "
                f"the model's {most}: {text[:80]!r}; ask with fewer num_fewshot or max_new_tokens, "
                "or shorten it"
            )

    def _said(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, some in a row at a time, so that one that was stopped goes on alike."""
        kept = {row.asked: row.said for row in read_journal(self.asked.journal, KeptAnswers)}
        size = self.asked.suite.batch_size * _BATCHES_AT_ONCE
        answer = getattr(self.model, kind)
        said: list[Any] = []
        with appending(self.asked.journal) as keep:
            for start in range(0, len(requests), size):
                part = requests[start : start + size]
                key = self._key(kind, start, part)
                if key not in kept:
                    with torch.random.fork_rng(), torch.no_grad():
                        torch.manual_seed(FEWSHOT_SEED + start)
                        row = KeptAnswers(asked=key, said=tuple(answer(part, disable_tqdm=True)))
                    keep(row)
                    kept[key] = row.said
                said += kept[key]
                self.asked.told(self.one.task.task_name, len(said), len(requests))
        return said

    def _key(self, kind: str, start: int, part: Sequence[Any]) -> str:
        asked = [kind, start, self.one.task.task_name, *(request.args for request in part)]
        return hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()


def _scored(
    one: HarnessTask, row: Mapping[str, Any], conversations: Mapping[str, Conversation]
) -> ItemAnswer:
    """Return an item's answer with its score."""
    item = f"{one.task.task_name} {row['doc_id']}"
    value: Any = row.get(one.metric)
    is_number = isinstance(value, int | float | np.generic) and math.isfinite(value)
    if not is_number or not 0 <= value <= 1:
        raise DataError(
            f"{one.where}: {one.metric} of item {row['doc_id']} is {str(value)[:80]}; a suite "
            "needs a score from 0 to 1 of every item: choose another metric"
        )
    score = 1.0 - float(value) if one.lower_is_better else float(value)
    asked, wanted = row["arguments"], row["target"]
    context = str(asked[0][0])
    if isinstance(wanted, int) and 0 <= wanted < len(asked):
        wanted = str(asked[wanted][1]).strip()
    return ItemAnswer(
        item=f"{item} {row['doc_hash'][:12]}",
        prompt=conversations.get(context, (Message(role="user", content=context),)),
        tags=(one.part,) if one.part else (),
        text=_shown(row),
        score=score,
        unmet=() if score == 1.0 else (f"{one.metric} {score:g}, wanted {str(wanted)[:200]!r}",),
    )


def _shown(row: Mapping[str, Any]) -> str:
    """Return what the model wrote; of choices, the nats of each, the most probable first."""
    answers = [each[0] for each in row["resps"]]
    if all(isinstance(answer, str) for answer in answers):
        return "\n".join(answers)
    choices = sorted(
        (-nats, str(asked[1])) for (nats, _), asked in zip(answers, row["arguments"], strict=True)
    )
    return "\n".join(f"{-less:.2f} nats {text.strip()!r}" for less, text in choices)
