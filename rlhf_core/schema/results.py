"""What is measured, and what is decided from it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf_core.errors import MissingMetricError
from rlhf_core.schema.base import Record
from rlhf_core.schema.references import ModelRef, StageName

Verdict = Literal["PROMOTE", "HOLD", "REJECT"]


class Estimate(Record):
    """A measured quantity with its confidence interval."""

    value: float
    low: float
    high: float
    num_samples: int = Field(ge=0)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Two-sided level of ``low`` and ``high``."""


class CheckResult(Record):
    """One data expectation."""

    name: str
    passed: bool
    severity: Literal["block", "warn"]
    num_failing: int = Field(ge=0)
    detail: str
    failing_ids: tuple[str, ...] = ()


class ValidationReport(Record):
    """Outcome of one expectation suite over one set of records."""

    suite: str
    checks: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """True when no blocking check failed."""
        return all(check.passed for check in self.checks if check.severity == "block")


class RowCounts(Record):
    """Rows of one file that became tokens, and those that did not; they add up."""

    rows: int = Field(ge=0)
    kept: int = Field(ge=0)
    left_out: dict[str, int] = Field(default_factory=dict)
    """Reason to rows: ``too_long``, or ``not_renderable`` (it does not survive the tokenizer)."""
    sides: dict[str, int] = Field(default_factory=dict)
    """Of pairs left out, whose response it was: ``chosen``, ``rejected``, ``both``, ``prompt``."""
    uneven: str = ""
    """Says so where one side lost more than chance would have it; empty otherwise."""


class Look(Record):
    """One look at a held-out set: how many came before decides how sure it has to be.

    Of the error that a gate may make over all looks at a set, 1 - confidence, the first one may
    make a half, as at its own end of the interval, and look k >= 2 the part 1 / (2 k (k - 1)) of
    that half:

        spent after k looks = (1 - confidence) (3 / 4 - 1 / (4 k))

    However many looks there are, all together err no more often than 1 - confidence (union bound);
    a quarter is kept for what bootstrap intervals miss beyond their level. Alpha spending: Lan &
    DeMets (1983), "Discrete sequential boundaries for clinical trials"; as a series for tests
    without end, Foster & Stine (2008), "Alpha-investing", section 3.
    """

    entry: str
    """Where it is on record: ``models:/<project>-looks/<number>``."""
    held_out: str
    """sha256 of the held-out prompts."""
    number: int = Field(ge=1)
    """1 for the first look at the set."""
    measured_by: str | None = None
    """MLflow run that keeps what was measured; None while nothing was."""
    sampling: str | None = None
    """How its answers are drawn."""

    @property
    def share(self) -> float:
        """Part of a first look's error that this one may make."""
        return 1.0 if self.number == 1 else 1.0 / (2 * self.number * (self.number - 1))


class PeopleVotes(Record):
    """People's votes on pairs of answers that the judge compared, as far as they were in."""

    pairs: int = Field(ge=0)
    """Samples whose outcome people gave, those with two equal answers included."""
    votes: int = Field(ge=0)
    by: tuple[str, ...]
    """Who voted; AI judges, ``ai:<model>``, only where no person did."""
    unmatched: int = Field(default=0, ge=0)
    """Pairs with votes whose answers are not among the samples on record: they do not count."""
    round: int = Field(default=1, ge=1)
    """1 for the first decision with votes on these answers; more votes make a decision of their
    own, which has to be surer, as a further look has."""


def share_of_round(number: int) -> float:
    """Part of the error of the first decision with votes that the decision ``number`` may make.

    Decision r >= 2 the part 1 / (3 r (r - 1)): the later ones together a third. So all decisions at
    all looks (``Look``) err no more often than (4 / 3) (3 / 4) (1 - confidence).
    """
    return 1.0 if number == 1 else 1.0 / (3 * number * (number - 1))


class SuiteRecord(Record):
    """What a suite asked, of whom, and where the answers are."""

    source: str
    """The list."""
    sha256: str
    """Of what it asks."""
    baseline: str
    """With whom the candidate was compared: the champion, or SFT where there is none."""
    baseline_score: float
    lost: int = Field(ge=0)
    """Items that the candidate does worse on."""
    gained: int = Field(ge=0)
    answers: Path
    """JSON lines, one item each, those that changed first."""


class CheckpointScore(Record):
    """What the answers of one checkpoint of a policy were worth to the judge."""

    step: int
    """Iterations of PPO, optimiser steps of DPO."""
    win_rate: Estimate
    """Over SFT, on the prompts set apart."""
    kl: Estimate | None
    """From SFT, nats per response; None where answers are greedy."""


class CheckpointChoice(Record):
    """Which checkpoint of a policy is offered, and why."""

    step: int
    """Of the checkpoint that is offered."""
    scores: tuple[CheckpointScore, ...]
    """Of all that were kept, the earliest first."""
    judge: str
    """Who preferred it."""
    num_prompts: int = Field(ge=1)
    rule: str
    """The rule in words."""
    answers: Path
    """JSON lines: the prompts set apart, with all that was answered and who won."""
    doubt: str = ""
    """Why nothing was preferred, and the last one is offered; empty where the rule chose."""

    @property
    def summary(self) -> str:
        """What is offered, in a line."""
        rates = ", ".join(
            f"{score.step}: {score.win_rate.value:.3f}"
            f" [{score.win_rate.low:.3f}, {score.win_rate.high:.3f}]"
            + ("" if score.kl is None else f" at KL {score.kl.value:.2f}")
            for score in self.scores
        )
        why = f"preferred by {self.judge} on {self.num_prompts} prompts set apart ({self.rule})"
        if self.doubt:
            why = (
                f"the last one, for {self.judge} chose none on {self.num_prompts} prompts set "
                f"apart: {self.doubt}"
            )
        last = self.scores[-1].step
        return f"checkpoint {self.step} of {last} is offered, {why}; win rates over SFT {rates}"


class EvaluationReport(Record):
    """Metrics of one model on held-out data."""

    stage: StageName
    model: ModelRef
    metrics: dict[str, Estimate]
    """``<stage>/<quantity>`` to estimate."""
    breakdown: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    """``<tag>=<value>`` (for example ``style=terse``) to metrics over those prompts only."""
    slices_over_champion: dict[str, Estimate] = Field(default_factory=dict)
    """``<tag>=<value>`` to the win rate over the champion, with the interval of a first look; in
    reports of earlier builds ``breakdown`` alone has it, as wide as the look makes it."""
    rows: dict[str, RowCounts] = Field(default_factory=dict)
    """Stage and file to what tokenisation made of its rows, in training and evaluation."""
    samples: Path | None = None
    """JSON lines of prompts, responses and scores that the metrics were computed from."""
    champion: str | None = None
    """The champion that answered the same prompts; None where there was none to compare with."""
    best_of_n: int | None = None
    """Answers of SFT that the best-of-n baseline was chosen from; None where there is none."""
    look: Look | None = None
    """Which look at the held-out prompts it was; None where looks are not counted."""
    units: str = ""
    """What counts as one sample, and what the intervals are about."""
    judge: str = ""
    """Who decided, of a policy's report; empty in reports of earlier builds."""
    judge_accuracy: Estimate | None = None
    """Of the judge, or several together, on held-out pairs that people voted on; at the confidence
    of the gate of ``judge/heldout_accuracy``. In reports of earlier builds of our own judge None.
    """
    judge_ceiling: Estimate | None = None
    """What the annotators' own disagreement on those pairs allows; None where it is not known."""
    suites: dict[str, SuiteRecord] = Field(default_factory=dict)
    """What was asked beside preference, by the suite's name."""
    people: PeopleVotes | None = None
    """Votes that the judge's win rate was corrected by; None where there are none."""
    choice: CheckpointChoice | None = None
    """Of a policy's training: which checkpoint it offers. None where the last one is."""

    def metric(self, name: str) -> Estimate:
        """Return the estimate called ``name``.

        Raises:
            MissingMetricError: it was never measured. A gate never assumes a value.
        """
        if name not in self.metrics:
            known = ", ".join(sorted(self.metrics)) or "none"
            raise MissingMetricError(
                f"metric {name!r} was not measured for stage {self.stage!r}, by an earlier build "
                f"or with other settings: evaluate again; measured: {known}"
            )
        return self.metrics[name]


class Forecast(Record):
    """How many samples would decide a gate that holds, if its value stays."""

    outcome: Literal["pass", "reject", "measure"]
    """What they would do; ``measure``: nothing can be forecast before so many are measured."""
    samples: int
    there: int
    """How many could be measured."""


class GateResult(Record):
    """One gate applied to one report."""

    gate: str
    """The metric, and the slice in brackets where it is gated over some prompts only."""
    verdict: Verdict
    estimate: Estimate | None
    """None where the gate does not apply, for it asks about a champion and there is none, or where
    nothing was measured yet."""
    rule: str
    """The rule in words, e.g. ``lower bound >= 0.6 (95%, n >= 300)``."""
    reason: str
    limit: float | None = None
    """The threshold; None in results of earlier builds."""
    min_samples: int | None = None
    """Samples that the gate asks for; None in results of earlier builds."""
    reach: float | None = None
    """What the interval has to reach beside that, however far below it may begin; None for gates
    that ask for one bound."""
    needed: str = ""
    """How many samples would decide it, in words; empty where it is decided."""
    forecast: Forecast | None = None
    """The same in numbers; None where no number would."""

    @property
    def shown_verdict(self) -> str:
        """The verdict as people see it: a gate that does not apply has said nothing."""
        return "n/a" if self.estimate is None and self.verdict == "PROMOTE" else self.verdict

    @property
    def without_estimate(self) -> str:
        """What stands in the place of an estimate that there is none of."""
        return "not applicable" if self.verdict == "PROMOTE" else "not measured"


class PromotionDecision(Record):
    """The verdict over all gates of a stage: the worst of its parts."""

    stage: StageName
    model: ModelRef
    verdict: Verdict
    results: tuple[GateResult, ...]
    reasons: tuple[str, ...]
    """Why, in sentences; names every gate that did not pass."""


_JUDGED_LATER = "its gates are those of the evaluation"
"""The only reason of a decision of earlier builds that nobody had made: it said PROMOTE."""


class StageResult(Record):
    """What a training or evaluation stage returns and shows to people."""

    stage: StageName
    model: ModelRef
    report: EvaluationReport
    decision: PromotionDecision | None
    """None where a later stage measures and judges the model."""
    seconds: float = Field(ge=0)
    """Wall time of the stage."""
    tracking_url: str
    """Where a person looks at the run."""

    @classmethod
    def judged_later(
        cls,
        stage: StageName,
        model: ModelRef,
        *,
        seconds: float,
        tracking_url: str,
        choice: CheckpointChoice | None = None,
    ) -> "StageResult":
        """Return the result of a training whose model a later stage measures and judges."""
        return cls(
            stage=stage,
            model=model,
            report=EvaluationReport(stage=stage, model=model, metrics={}, choice=choice),
            decision=None,
            seconds=seconds,
            tracking_url=tracking_url,
        )

    @property
    def verdict(self) -> Verdict | None:
        """What its gates said; None where a later stage judges the model."""
        return None if self.decision is None else self.decision.verdict

    @property
    def judgement(self) -> PromotionDecision:
        """The decision of a stage that judges.

        Raises:
            MissingMetricError: a later stage judges the model.
        """
        if self.decision is None:
            raise MissingMetricError(
                f"{self.model.uri}: stage {self.stage} has no verdict, its model is judged later"
            )
        return self.decision

    @model_validator(mode="before")
    @classmethod
    def _read_earlier(cls, value: Any) -> Any:
        """The policy's stage of earlier builds returned its model alone, or PROMOTE unjudged."""
        if not isinstance(value, dict):
            return value
        if "uri" in value:
            model = ModelRef.model_validate(value)
            return dict(cls.judged_later("policy", model, seconds=0.0, tracking_url=""))
        decision = value.get("decision")
        if isinstance(decision, dict) and list(decision.get("reasons", ())) == [_JUDGED_LATER]:
            return value | {"decision": None}
        return value
