"""Suites: what a model must still do, item by item, champion and candidate on the same items."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from rlhf_core.config.evaluation import EvaluationConfig, GateConfig
from rlhf_core.config.phrases import Phrase, compile_phrase, finds_anything
from rlhf_core.config.suites import DIFFERENCE as LOSS
from rlhf_core.config.suites import LmEvalSuiteConfig, SuiteConfig, suite_of
from rlhf_core.errors import DataError
from rlhf_core.evaluation.gates import judge_estimate
from rlhf_core.evaluation.harness import tasks_digest
from rlhf_core.evaluation.reading import plain
from rlhf_core.schema import Conversation, Estimate, EvaluationReport, GateResult, Message, Record
from rlhf_core.statistics.intervals import DIFFERENCE, SHARE, Plans, Resampling, estimate_mean
from rlhf_core.storage.records import describe, parse_object, read_lines, require_file, shorten


class Wanted(Record):
    """A condition as the file writes it in full; a bare string is a regular expression."""

    text: str | None = Field(default=None, min_length=1)
    """To stand in the answer as it is, case ignored."""
    regex: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "Wanted":
        if (self.text is None) == (self.regex is None):
            raise ValueError("give one of text and regex")
        if self.regex is not None and finds_anything(self.regex):
            raise ValueError(f"{self.regex!r} matches any text, the empty one too")
        return self

    @property
    def label(self) -> str:
        """The condition, for people."""
        return repr(self.text) if self.text is not None else f"/{self.regex}/"

    def is_in(self, answer: str) -> bool:
        """Say whether the answer, as written or as a reader sees it, fulfils it."""
        readings = (answer, plain(answer))
        if self.text is not None:
            wanted = (self.text.casefold(), plain(self.text).casefold())
            return any(own in one.casefold() for own, one in zip(wanted, readings, strict=True))
        pattern = _compiled(str(self.regex))
        return any(pattern.search(reading) is not None for reading in readings)


class SuiteItem(Record):
    """A prompt, and what an answer to it must and must not match."""

    id: str = Field(default="", max_length=200)
    prompt: Conversation
    must_match: tuple[Wanted, ...] = ()
    """Each of them."""
    must_not_match: tuple[Wanted, ...] = ()
    """None of them."""
    tags: tuple[str, ...] = ()

    @field_validator("prompt", mode="before")
    @classmethod
    def _as_conversation(cls, prompt: object) -> object:
        return (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt

    @field_validator("must_match", "must_not_match", mode="before")
    @classmethod
    def _as_conditions(cls, found: object) -> object:
        several = found if isinstance(found, list | tuple) else [found]
        return [{"regex": one} if isinstance(one, str) else one for one in several]

    @field_validator("tags", mode="before")
    @classmethod
    def _as_tags(cls, found: object) -> object:
        return (found,) if isinstance(found, str) else found

    @field_validator("tags")
    @classmethod
    def _can_be_named(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        for tag in tags:
            if not tag or not all(letter.isalnum() or letter in "_-." for letter in tag):
                raise ValueError(f"{tag!r}: a tag is of letters, digits, - _ .")
        return tuple(dict.fromkeys(tags))

    @model_validator(mode="after")
    def _can_be_asked(self) -> "SuiteItem":
        if not self.must_match and not self.must_not_match:
            raise ValueError("neither must_match nor must_not_match: any answer would pass")
        if not self.prompt or self.prompt[-1].role != "user":
            raise ValueError("prompt: expected a text, or messages of which the user's is the last")
        if not self.prompt[-1].content.strip():
            raise ValueError("prompt: the user says nothing")
        return self

    def unmet(self, answer: str) -> list[str]:
        """Return what an answer fails, in words; an empty list for one that passes."""
        lacking = [f"lacks {one.label}" for one in self.must_match if not one.is_in(answer)]
        return lacking + [f"has {one.label}" for one in self.must_not_match if one.is_in(answer)]


class SuiteAnswer(Record):
    """One item with both models' answers, as the run's file of the suite keeps it."""

    item: str
    prompt: Conversation
    tags: tuple[str, ...] = ()
    candidate: str
    baseline: str
    """The champion's answer, or SFT's where there is no champion."""
    candidate_score: float
    """1 for an answer that passes."""
    baseline_score: float
    candidate_unmet: tuple[str, ...] = ()
    """What the answer fails, in words."""
    baseline_unmet: tuple[str, ...] = ()

    @property
    def change(self) -> float:
        """How much better the candidate did; below 0 worse."""
        return self.candidate_score - self.baseline_score


@dataclass(frozen=True)
class ItemAnswer:
    """What one model answered to one item."""

    item: str
    prompt: Conversation
    tags: tuple[str, ...]
    text: str
    score: float
    """From 0 to 1; 1 for an answer that passes."""
    unmet: tuple[str, ...] = ()
    """What the answer fails, in words."""


def paired(candidate: Sequence[ItemAnswer], baseline: Sequence[ItemAnswer]) -> list[SuiteAnswer]:
    """Return both models' answers to the same items, those that changed first, losses first."""
    rows = [
        SuiteAnswer(
            item=own.item,
            prompt=own.prompt,
            tags=own.tags,
            candidate=own.text,
            baseline=other.text,
            candidate_score=own.score,
            baseline_score=other.score,
            candidate_unmet=own.unmet,
            baseline_unmet=other.unmet,
        )
        for own, other in zip(candidate, baseline, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.change == 0.0, row.change))


_PATTERNS: dict[str, Phrase] = {}


def _compiled(pattern: str) -> Phrase:
    if pattern not in _PATTERNS:
        _PATTERNS[pattern] = compile_phrase(pattern)
    return _PATTERNS[pattern]


def read_items(path: Path) -> list[SuiteItem]:
    """Read a regression list: JSON lines, or YAML (``.yaml``, ``.yml``) with a list of items.

    Raises:
        DataError: there is no such file, an item is not one, or two have one name or one prompt;
            says where and what was expected.
    """
    require_file(path, "evaluation.suites names it, write the list there")
    items: list[SuiteItem] = []
    asked: dict[str, str] = {}
    for where, row in _rows(path):
        item = _item(row, where)
        item = item if item.id else item.model_copy(update={"id": where.rpartition(", ")[2]})
        prompt = json.dumps([[turn.role, turn.content] for turn in item.prompt])
        for key, name in ((f"id {item.id}", f"id {item.id!r}"), (prompt, "prompt")):
            if key in asked:
                raise DataError(
                    f"{where}: the same {name} as {asked[key]}; make it one item with all of the "
                    "conditions"
                )
            asked[key] = where.rpartition(", ")[2]
        items.append(item)
    if not items:
        raise DataError(f"{path}: no items; expected a prompt with must_match or must_not_match")
    return items


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix.lower() not in (".yaml", ".yml"):
        for number, text in read_lines(path):
            yield f"{path}, line {number}", parse_object(text, where=f"{path}, line {number}")
        return
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, list):
        raise DataError(f"{path}: expected a list of items, found {type(found).__name__}")
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, item {number}: expected keys, found {shorten(row)}")
        yield f"{path}, item {number}", row


def _item(row: Mapping[str, Any], where: str) -> SuiteItem:
    given = dict(row)
    if "messages" in given:
        if "prompt" in given:
            raise DataError(f"{where}: prompt and messages; give one of them")
        given["prompt"] = given.pop("messages")
    try:
        return SuiteItem.model_validate(given)
    except ValidationError as error:
        raise DataError(f"{where}: {describe(error)}") from error


def items_digest(items: Sequence[SuiteItem]) -> str:
    """Return sha256 of what a list asks, however its file is written."""
    asked = json.dumps([item.model_dump(mode="json") for item in items], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def suites_digest(suites: Sequence[SuiteConfig]) -> str:
    """Return sha256 of what all suites ask, empty without any: a list that changed is run again."""
    if not suites:
        return ""
    asked = {
        suite.name: tasks_digest(suite)
        if isinstance(suite, LmEvalSuiteConfig)
        else items_digest(read_items(suite.path))
        for suite in suites
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class SuitePlan:
    """How a suite's intervals are made."""

    suite: SuiteConfig
    plans: Plans
    settings: EvaluationConfig

    def of(self, metric: str) -> Resampling:
        """Return the plan of a metric: at its gate's confidence, or at the suite's."""
        plan = replace(self.plans(metric), clusters=None)
        if metric in self.plans.confidences:
            return plan
        needed = self.settings.resamples_for(self.suite.confidence)
        return replace(
            plan,
            confidence=self.suite.confidence,
            num_resamples=max(plan.num_resamples, needed),
        )


def suite_metrics(rows: Sequence[SuiteAnswer], plan: SuitePlan) -> dict[str, Estimate]:
    """``suite/NAME/score`` and ``suite/NAME/difference``, and both of every tag's items.

    The score is the candidate's share of passed items; the difference is that to the champion's, or
    SFT's, item by item.
    """
    tags = sorted({tag for row in rows for tag in row.tags})
    metrics: dict[str, Estimate] = {}
    for tag in (None, *tags):
        part = [row for row in rows if tag is None or tag in row.tags]
        name = f"suite/{plan.suite.name}/" + (f"{tag}/" if tag else "")
        for what, bounds, values in (
            ("score", SHARE, [row.candidate_score for row in part]),
            ("difference", DIFFERENCE, [row.change for row in part]),
        ):
            estimate = estimate_mean(np.array(values), plan.of(name + what), bounds=bounds)
            if plan.suite.items_are == "all":
                exact = {"low": estimate.value, "high": estimate.value}
                estimate = estimate.model_copy(update=exact)
            metrics[name + what] = estimate
    return metrics


def suite_results(
    suites: Sequence[SuiteConfig], gated: Sequence[str], report: EvaluationReport
) -> tuple[GateResult, ...]:
    """Hold a candidate to its baseline on every suite, and on the tags that the suite gates.

    Args:
        suites: as configured.
        gated: metrics that have gates of their own, which stand instead.
        report: what was measured.
    """
    results = []
    for metric, estimate in report.metrics.items():
        suite = suite_of(metric, suites)
        if suite is None or suite.max_loss is None or metric in gated:
            continue
        tag = metric.removeprefix(f"suite/{suite.name}/").removesuffix(LOSS).rstrip("/")
        if not metric.endswith(LOSS) or (tag and not suite.gates_part(tag)):
            continue
        gate = GateConfig(
            metric=metric,
            at_least=-suite.max_loss,
            confidence=estimate.confidence,
            min_samples=1,
        )
        results.append(judge_estimate(gate, estimate))
    return tuple(results)
