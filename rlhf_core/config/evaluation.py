"""What is measured on held-out data and what must be true before a model moves on."""

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_args

from pydantic import Field, field_validator, model_validator

from rlhf_core.config.base import Count, Positive, Resamples, Section, Temperature
from rlhf_core.config.judges import JudgeConfig
from rlhf_core.config.metric_names import SLICED_METRICS, is_taken, metrics_of, range_of
from rlhf_core.config.suites import SuiteConfig
from rlhf_core.errors import ConfigError

_MAX_SECONDS = 5.0
"""How long one phrase may look at one text: thousands of times what any honest one takes."""
_MAX_PROBES, _PROBE_LENGTH = 12, 200
_BEYOND_EACH_END = 2
"""Resamples that must lie beyond each end of an interval."""

GatedStage = Literal["sft", "reward", "judge", "policy"]
GATED_STAGES: tuple[GatedStage, ...] = get_args(GatedStage)


class GateConfig(Section):
    """One condition on one metric's confidence bound."""

    metric: str
    """``<stage>/<quantity>``; docs/gates.md lists what each stage measures."""
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    """The lower confidence bound must reach this."""
    at_most: float | None = Field(default=None, allow_inf_nan=False)
    """The upper confidence bound must not pass this."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Two-sided level of the interval whose bound is tested."""
    min_samples: Count = 100
    """Fewer independent samples (dialogues) than this is HOLD, whatever the bound says."""
    slice: str | None = Field(default=None, pattern=r"^[^=]+=.+$")
    """Only over some prompts or pairs, ``style=terse``; the report's breakdown names the slices."""

    @field_validator("metric")
    @classmethod
    def _not_gold(cls, metric: str) -> str:
        if metric.startswith("gold/"):
            raise ValueError("gold metrics are for reports; no gate may decide by them")
        return metric

    @model_validator(mode="after")
    def _one_bound(self) -> "GateConfig":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give exactly one of at_least and at_most")
        return self

    def require_some_fail(self) -> None:
        """Refuse a gate that every model passes: it only looks as if something had been asked.

        Raises:
            ValueError: names the metric's range and the threshold.
        """
        low, high = range_of(self.metric)
        always = (self.at_least is not None and self.at_least <= low) or (
            self.at_most is not None and self.at_most >= high
        )
        if always:
            asked = f"at_least {self.at_least:g}" if self.at_most is None else ""
            asked = asked or f"at_most {self.at_most:g}"
            raise ValueError(
                f"{self.metric} lies between {low:g} and {high:g}, so a gate of {asked} cannot "
                "fail; ask for more, or leave it out"
            )

    def asks_as_much_as(self, other: "GateConfig") -> bool:
        """Say whether what passes this gate passes ``other``."""
        if (self.metric, self.slice) != (other.metric, other.slice):
            return False
        if other.at_least is not None:
            as_far = self.at_least is not None and self.at_least >= other.at_least
        else:
            limit = math.inf if other.at_most is None else other.at_most
            as_far = self.at_most is not None and self.at_most <= limit
        as_sure = self.confidence >= other.confidence and self.min_samples >= other.min_samples
        return as_far and as_sure


class RequiredGates(Section):
    """Gates that a project asks of every run: no settings leave them out or weaken them."""

    sft: tuple[GateConfig, ...] = ()
    reward: tuple[GateConfig, ...] = ()
    judge: tuple[GateConfig, ...] = ()
    policy: tuple[GateConfig, ...] = ()

    def of_stage(self, stage: GatedStage) -> tuple[GateConfig, ...]:
        """Return what is asked of a stage's model."""
        gates: tuple[GateConfig, ...] = getattr(self, stage)
        return gates

    def missing(self, stage: GatedStage, applied: tuple[GateConfig, ...]) -> tuple[GateConfig, ...]:
        """Return the required gates that none of ``applied`` asks as much as."""
        return tuple(
            gate
            for gate in self.of_stage(stage)
            if not any(own.asks_as_much_as(gate) for own in applied)
        )

    def added_to(self, stage: GatedStage, own: tuple[GateConfig, ...]) -> tuple[GateConfig, ...]:
        """Return a run's gates with those that are required and not among them.

        A metric has one confidence: the highest that anybody asks.
        """
        gates = (*own, *self.missing(stage, own))
        surest: dict[str, float] = {}
        for gate in gates:
            surest[gate.metric] = max(surest.get(gate.metric, 0.0), gate.confidence)
        return tuple(gate.model_copy(update={"confidence": surest[gate.metric]}) for gate in gates)

    @model_validator(mode="after")
    def _measurable(self) -> "RequiredGates":
        for stage in GATED_STAGES:
            for gate in self.of_stage(stage):
                if gate.metric not in metrics_of(stage, ()):
                    known = ", ".join(sorted(metrics_of(stage, ())))
                    raise ValueError(
                        f"{stage}: every run has to measure {gate.metric}, and not all do; "
                        f"measured are {known}"
                    )
                _require_sliced(stage, gate)
                gate.require_some_fail()
        return self


def _require_sliced(stage: GatedStage, gate: GateConfig) -> None:
    if gate.slice and gate.metric.partition("/")[2] not in SLICED_METRICS:
        raise ValueError(
            f"{stage}: {gate.metric} is not measured by slice; {', '.join(SLICED_METRICS)} are"
        )


class GatesConfig(Section):
    """Gates by stage. A stage without gates cannot be promoted."""

    sft: tuple[GateConfig, ...]
    """Gates of the SFT model, on ``sft/...`` metrics."""
    reward: tuple[GateConfig, ...]
    """Gates of the reward model, on ``reward/...`` metrics."""
    policy: tuple[GateConfig, ...]
    """Gates of the policy, on ``policy/...`` metrics of its evaluation."""
    judge: tuple[GateConfig, ...] | None = None
    """Gates of the judge, on ``judge/...`` metrics; None asks of it what ``reward`` asks."""

    def of_stage(self, stage: GatedStage) -> tuple[GateConfig, ...]:
        """Return the gates a stage's model has to pass."""
        if stage == "judge" and self.judge is None:
            return tuple(
                gate.model_copy(update={"metric": f"judge/{gate.metric.removeprefix('reward/')}"})
                for gate in self.reward
            )
        gates: tuple[GateConfig, ...] = getattr(self, stage)
        return gates

    @model_validator(mode="after")
    def _measurable(self) -> "GatesConfig":
        for stage in GATED_STAGES:
            levels: dict[str, float] = {}
            for gate in getattr(self, stage) or ():
                own = (f"{stage}/", "suite/") if stage == "policy" else f"{stage}/"
                if not gate.metric.startswith(own):
                    raise ValueError(
                        f"{stage}: gate on {gate.metric!r}: this stage measures {stage}/..."
                    )
                _require_sliced(stage, gate)
                if levels.setdefault(gate.metric, gate.confidence) != gate.confidence:
                    raise ValueError(
                        f"{stage}: {gate.metric} is gated at two confidences; a metric has one"
                    )
        return self


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


class MonitorsConfig(Section):
    """Signs of reward hacking that are read from the text alone, in the policy and in SFT."""

    phrases: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Vice to regular expressions, case ignored. Added to the built-in ones (``flattery``,
    ``hedging``, ``refusal``, ``padding``); a new name is a new vice with a metric of its own."""
    ngram: int = Field(default=3, ge=2, le=100)
    """Words in a row that count as repeated or copied."""
    opening_words: int = Field(default=4, ge=1, le=100)
    """Words that make an opening or a closing; collapse is the share of the most common one."""
    long_factor: Positive = 1.5
    """An answer this many times as long as the other model's counts as overlong."""

    @field_validator("phrases")
    @classmethod
    def _patterns_compile(cls, phrases: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for vice, patterns in phrases.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", vice):
                raise ValueError(f"{vice!r}: a vice is named in lower case, a-z 0-9 _")
            if is_taken(vice):
                raise ValueError(f"{vice!r} is the name of something else that is measured")
            for pattern in patterns:
                if finds_anything(pattern):
                    raise ValueError(f"{vice}: {pattern!r} matches any text, the empty one too")
        return phrases


class EvaluationConfig(Section):
    """How models are judged."""

    num_prompts: Count = 300
    """Held-out prompts answered by the policy and by SFT, at most; one of a dialogue."""
    temperature: Temperature = 0.7
    """Sampling temperature of the answers compared; 0 is greedy, and then no KL is measured."""
    max_new_tokens: Count | None = None
    """Longest answer compared, in tokens; None takes the policy's own setting, or, as DPO has none,
    what ``model.max_length`` leaves beside the prompt (half, without ``max_prompt_length``)."""
    micro_batch_tokens: Count = 16_384
    """Tokens per forward pass while scoring; bounds memory and does not change the result."""
    num_resamples: Resamples = 2_000
    """Bootstrap resamples per interval; at least two of them must lie beyond each end."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Two-sided level of the intervals of metrics without a gate; a gated one has its gate's."""
    num_calibration_bins: int = Field(default=10, ge=1, le=1_000)
    """Bins of equal width of the calibration error."""
    judge: JudgeConfig | None = None
    """Who decides between the answers: ``models:/NAME/VERSION``, ``run`` for the judge that this
    run trained, a section with ``kind: ai`` (a chat endpoint) or ``kind: reward_model``, or a list
    of these, whose decision is the mean. None: the judge of the champion's release, so that one
    measure goes on from one champion to the next; without a champion the run's own."""
    num_judge_pairs: Count = 300
    """Held-out pairs with people's votes that a judge from elsewhere is measured on, at most."""
    best_of_k: Path | None = None
    """File of prompts with one right answer among several, as RewardBench 2 has them: columns
    ``prompt``, ``chosen``, ``rejected`` (lists) and ``subset``. Reward model and judge are measured
    on it as ``best_of_k_accuracy``."""
    best_of_n: Annotated[int, Field(ge=2, le=1_000)] | None = None
    """Answers that SFT gives to each held-out prompt as a baseline: the run's reward model chooses
    one, and the judge compares it with SFT's single answer and with the policy's. Costs this many
    times the sampling of SFT's answers. None: no baseline."""
    topics: str | None = None
    """What the intervals are about. None: new prompts about the same topics; every dialogue is a
    sample. A tag (``intent``): new topics; prompts of one value are resampled together and count
    once. ``near-duplicates``: the same, for groups of prompts that read nearly alike."""
    rater: str | None = None
    """``module:function`` of an outside measure for reports, never a gate or a training signal:
    takes (prompt, response) and returns named scores. None where there is none. The worker's
    RLHF_ALLOWED_FUNCTIONS lists what may be named."""
    monitors: MonitorsConfig = MonitorsConfig()
    suites: tuple[SuiteConfig, ...] = ()
    """What the candidate must do as well as the champion, item by item: frozen lists."""

    def resamples_for(self, confidence: float) -> int:
        """Return how many resamples an interval of this level needs, so that its ends mean much."""
        return math.ceil(_BEYOND_EACH_END * 2.0 / (1.0 - confidence) - 1e-6)

    @field_validator("suites")
    @classmethod
    def _named_once(cls, suites: tuple[SuiteConfig, ...]) -> tuple[SuiteConfig, ...]:
        names = [suite.name for suite in suites]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two suites are called {name!r}; give each a name of its own")
        return suites

    @model_validator(mode="after")
    def _answers_differ(self) -> "EvaluationConfig":
        if self.best_of_n is not None and self.temperature == 0.0:
            raise ValueError(
                f"best_of_n {self.best_of_n} with temperature 0: greedy answers are all the same, "
                "and there is nothing to choose; set a temperature above 0, or leave best_of_n out"
            )
        return self

    @model_validator(mode="after")
    def _enough_resamples(self) -> "EvaluationConfig":
        if self.num_resamples < (needed := self.resamples_for(self.confidence)):
            raise ValueError(
                f"num_resamples {self.num_resamples} is too few for confidence {self.confidence:g};"
                f" {needed} are needed"
            )
        return self
