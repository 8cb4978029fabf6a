"""What is measured on held-out data and what must be true before a model moves on."""

import difflib
import math
import re
from collections.abc import Container
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field, field_validator, model_validator

from rlhf_core.config.base import Count, Positive, Resamples, Section, Temperature
from rlhf_core.config.judges import JudgeConfig
from rlhf_core.config.metric_names import SLICED_METRICS, is_taken, metrics_of, range_of
from rlhf_core.config.phrases import finds_anything
from rlhf_core.config.suites import SuiteConfig
from rlhf_core.schema import ModelRole

_BEYOND_EACH_END = 2
"""Resamples that must lie beyond each end of an interval."""

GatedStage = ModelRole
"""A stage that trains a model has the name of that model's role, and gates for it."""
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
                    close = difflib.get_close_matches(gate.metric, metrics_of(stage, ()), n=3)
                    meant = f"did you mean {' or '.join(close)}? " if close else ""
                    raise ValueError(
                        f"{stage}: every run has to measure {gate.metric}, and not all do; "
                        f"{meant}docs/gates.md lists what is measured"
                    )
                _require_sliced(stage, gate)
                gate.require_some_fail()
        return self


def _require_sliced(stage: GatedStage, gate: GateConfig) -> None:
    if gate.slice and gate.metric.partition("/")[2] not in SLICED_METRICS:
        raise ValueError(
            f"{stage}: {gate.metric} is not measured by slice; {', '.join(SLICED_METRICS)} are"
        )


def _reward_hacking_gates() -> tuple[GateConfig, ...]:
    """Kinds of answers that fool a judge, whatever their words."""
    limits = {
        "flattery": 0.05,
        "hedging": 0.1,
        "refusal": 0.1,
        "padding": 0.1,
        "repetition": 0.05,
        "copying": 0.1,
        "template": 0.2,
        "closing": 0.2,
        "duplicate": 0.1,
        "foreign_script": 0.05,
        "language_switch": 0.05,
        "disguise": 0.05,
        "off_topic": 0.1,
        "novel_words": 0.1,
        "formatting": 0.2,
        "self_similarity": 0.15,
        "stock_sentence": 0.2,
        "word_order": 0.2,
        "unfinished": 0.2,
        "shuffled_prompt": 0.1,
    }
    return (
        GateConfig(metric="policy/length_ratio", at_least=0.7),
        GateConfig(metric="policy/distinct_2_ratio", at_least=0.5),
        GateConfig(metric="policy/proxy_gap", at_most=1.0),
        *(
            GateConfig(metric=f"policy/{vice}_increase", at_most=limit)
            for vice, limit in limits.items()
        ),
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
    reward_hacking: tuple[GateConfig, ...] = _reward_hacking_gates()
    """Asked of the policy beside ``policy``: no growth of what fools a judge. A gate of ``policy``
    on the same metric and bound stands in place of one of these; ``[]`` asks none of them."""

    def against_reward_hacking(
        self, own: tuple[GateConfig, ...], left_out: Container[str]
    ) -> tuple[GateConfig, ...]:
        """Return those of ``reward_hacking`` that nobody has replaced.

        Args:
            own: all other gates of the policy. Without one nothing was asked, so nothing is added.
                A metric has one confidence: theirs.
            left_out: metrics that these settings do not measure.
        """
        named = {(gate.metric, gate.at_most is None) for gate in self.policy if not gate.slice}
        sure = {gate.metric: gate.confidence for gate in own}
        return tuple(
            gate.model_copy(update={"confidence": sure.get(gate.metric, gate.confidence)})
            for gate in self.reward_hacking
            if self.policy
            and (gate.metric, gate.at_most is None) not in named
            and gate.metric not in left_out
        )

    def of_stage(self, stage: GatedStage) -> tuple[GateConfig, ...]:
        """Return the gates a stage's model has to pass."""
        if stage == "judge" and self.judge is None:
            return tuple(
                gate.model_copy(update={"metric": f"judge/{gate.metric.removeprefix('reward/')}"})
                for gate in self.reward
            )
        gates: tuple[GateConfig, ...] = getattr(self, stage)
        return gates

    def _require_of_stage(self, section: str, stage: GatedStage) -> None:
        """Refuse gates of a section that its stage cannot measure, or not at one confidence."""
        levels: dict[str, float] = {}
        for gate in getattr(self, section) or ():
            own = (f"{stage}/", "suite/") if stage == "policy" else f"{stage}/"
            if not gate.metric.startswith(own):
                raise ValueError(
                    f"{section}: gate on {gate.metric!r}: this stage measures {stage}/..."
                )
            _require_sliced(stage, gate)
            if levels.setdefault(gate.metric, gate.confidence) != gate.confidence:
                raise ValueError(
                    f"{section}: {gate.metric} is gated at two confidences; a metric has one"
                )

    @model_validator(mode="after")
    def _measurable(self) -> "GatesConfig":
        for stage in GATED_STAGES:
            self._require_of_stage(stage, stage)
        self._require_of_stage("reward_hacking", "policy")
        return self


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
