"""One self-contained HTML page about a run: decision, gates, metrics, pictures, samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlhf_core.config.metric_names import CEILING, ERROR_CORRELATION
from rlhf_core.evaluation.gates import describe_look
from rlhf_core.evaluation.monitors import VICES
from rlhf_core.evaluation.people import describe_votes
from rlhf_core.evaluation.preference_metrics import correlation_by_noise
from rlhf_core.evaluation.samples import AverageQuantity
from rlhf_core.evaluation.suites import SuiteAnswer
from rlhf_core.schema import (
    Conversation,
    Estimate,
    EvaluationReport,
    GateResult,
    StageResult,
    SuiteRecord,
    Verdict,
)
from rlhf_core.schema.shown import shown
from rlhf_core.storage.records import read_records

TEMPLATES = Path(__file__).parent / "templates"

HEADLINES = {
    "policy/win_rate": "win rate over SFT, by the judge",
    "policy/win_rate_corrected": "the same, corrected by people's votes",
    "policy/length_controlled_win_rate": "win rate over SFT at equal length",
    "policy/win_rate_over_champion": "win rate over the champion, by the judge",
    "policy/win_rate_over_best_of_n": "win rate over best-of-n of SFT, by the judge",
    "policy/best_of_n_win_rate": "best-of-n's own win rate over SFT, by the judge",
    "gold/win_rate": "win rate over SFT, by the gold rater",
    "gold/correctness": "correctness, by the gold rater",
    "gold/correctness_change": "the same, less SFT's",
    "policy/kl": "KL from SFT, nats per response",
    "policy/best_of_n_kl_bound": "best-of-n's KL from SFT at most, nats per response",
    "policy/length_ratio": "response length over SFT's",
    "reward/heldout_accuracy": "reward model, held-out accuracy",
    "reward/length_only_accuracy": "the same, knowing only lengths",
    "judge/heldout_accuracy": "judge, held-out accuracy",
    "judge/noise_ceiling": "what the annotators' disagreement allows it, by a beta model",
    "reward/best_of_k_accuracy": "reward model, the right answer out of several",
    "judge/best_of_k_accuracy": "judge, the right answer out of several",
    "policy/judge_error_correlation": "correlation of its errors with the reward model's",
    "sft/heldout_nll": "SFT, nats per held-out token",
}
"""Metrics shown large, with what they are; those that were measured appear, in this order."""


@dataclass(frozen=True)
class Sample:
    """One prompt with both answers, for reading side by side."""

    prompt: Conversation
    tags: Mapping[str, str]
    policy: str
    sft: str
    won: float
    scores: Mapping[str, tuple[float, float]]
    """Scorer to its scores of the policy's and SFT's answer."""
    champion: str | None = None
    """The champion's answer, where one was compared."""
    champion_score: float | None = None
    """Of the judge."""
    best_of_n: str | None = None
    """The baseline's answer, where one was measured."""


@dataclass(frozen=True)
class ShownSuite:
    """A suite on the page."""

    name: str
    record: SuiteRecord
    metrics: Mapping[str, Estimate]
    """Without ``suite/NAME/``."""
    answers: Sequence[SuiteAnswer]
    """Those that changed first."""
    baseline: str
    """``champion`` or ``SFT``: with whose answers they are compared."""

    @property
    def changed(self) -> list[SuiteAnswer]:
        """Answers that are worth more or less than the baseline's."""
        return [answer for answer in self.answers if answer.change]

    @property
    def unchanged(self) -> list[SuiteAnswer]:
        """The others of ``answers``."""
        return [answer for answer in self.answers if not answer.change]


@dataclass(frozen=True)
class Page:
    """Everything the page shows."""

    run_id: str
    project: str
    results: Sequence[StageResult]
    """Stages in the order they ran; the last one decided."""
    promotion: Mapping[str, Any] | None
    figures: Mapping[str, Sequence[str]]
    """Section to pictures, as ``data:`` addresses."""
    samples: Mapping[str, Sequence[Sample]]
    """Why they were chosen, to the samples."""
    lineage: Mapping[str, Any] | None
    data: Mapping[str, Any] | None
    """The report of preparation."""
    settings: str
    """The run's configuration, as text."""
    suites: Sequence[ShownSuite] = field(default_factory=tuple)
    """What was asked beside preference."""
    notes: Sequence[str] = field(default_factory=tuple)
    """What could not be shown, and why."""
    data_docs: str | None = None
    """Where the Data Docs of the dataset lie."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """When, with what and how long, label to text."""
    averages: Sequence[AverageQuantity] = field(default_factory=tuple)
    """The models side by side."""
    models: Mapping[str, str] = field(default_factory=dict)
    """``candidate``, ``SFT``, ``champion`` to what each is called; those that answered."""
    steps: Mapping[str, tuple[Verdict | None, str]] = field(default_factory=dict)
    """Stages that ended: the verdict of those with gates, and how long it took or what it made."""
    needed: Sequence[str] = field(default_factory=tuple)
    """What would decide where nothing is decided yet, in sentences."""

    @property
    def errors_shared(self) -> str:
        """Whether the judge errs where the reward model errs, in sentences."""
        return errors_shared({result.stage: result for result in self.results})

    @property
    def accuracies(self) -> dict[str, list[Estimate | None]]:
        """Slice to the accuracy of ``scorers`` over its pairs, all pairs and the ceiling first."""
        ceiling = {
            "what the annotators' disagreement allows": [
                one.report.metrics.get(f"{one.stage}/{CEILING}") for one in self.scorers
            ]
        }
        pairs, slices = self._by_slice("heldout_accuracy")
        rows = {"all pairs": pairs} | ceiling | slices
        return {name: row for name, row in rows.items() if any(row)}

    @property
    def best_of_k(self) -> dict[str, list[Estimate | None]]:
        """Subset to how often ``scorers`` find the right answer out of several, all rows first."""
        rows, subsets = self._by_slice("best_of_k_accuracy")
        return {"all rows": rows} | subsets if any(rows) else {}

    def _by_slice(
        self, quantity: str
    ) -> tuple[list[Estimate | None], dict[str, list[Estimate | None]]]:
        """One quantity of each of ``scorers``: over all, and slice by slice."""
        reports = [(one.stage, one.report) for one in self.scorers]
        names = dict.fromkeys(name for _, one in reports for name in one.breakdown)
        slices = {
            name: [one.breakdown.get(name, {}).get(f"{stage}/{quantity}") for stage, one in reports]
            for name in names
        }
        whole = [one.metrics.get(f"{stage}/{quantity}") for stage, one in reports]
        return whole, {name: row for name, row in slices.items() if any(row)}

    @property
    def scorers(self) -> list[StageResult]:
        """Judge and reward model, those that this run trained."""
        return [one for one in self.results if one.stage in ("judge", "reward")]


@dataclass(frozen=True)
class Meter:
    """An interval against its threshold, in per cent of the width of a track."""

    left: float
    width: float
    value: float
    limit: float
    passes_above: bool
    """True where the side above the threshold passes."""
    reach: float | None = None
    """What the interval has to reach, too; where it passes begins there and not at the limit."""

    @property
    def passes(self) -> float:
        """Where the part that passes begins."""
        return self.limit if self.reach is None else self.reach

    @property
    def allowed(self) -> float:
        """Width of the part between both, where an interval may begin but not end."""
        return round(self.passes - self.limit, 2)


def render_page(page: Page) -> str:
    """Return the page as HTML; whatever a model or a person wrote is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "interval": interval, "seconds": duration, "place": place,
    }  # fmt: skip
    metrics = {
        name: value for result in page.results for name, value in result.report.metrics.items()
    }
    return environment.get_template("report.html.jinja").render(
        page=page,
        decided=page.results[-1] if page.results else None,
        headlines=[(metrics[name], text) for name, text in HEADLINES.items() if name in metrics],
        reasons=_passed_and_failed(page.results[-1]) if page.results else ([], []),
        gate_rows=gate_rows,
        vices=vice_rows(page.results),
        rows_left_out={
            name: counts for result in page.results for name, counts in result.report.rows.items()
        },
        verdict_class=verdict_class,
        describe_look=describe_look,
        describe_votes=describe_votes,
    )


def verdict_class(verdict: Verdict) -> str:
    """CSS class of a verdict."""
    return verdict.lower()


def gate_rows(result: StageResult) -> list[tuple[GateResult, Meter | None]]:
    """Each gate's outcome with its meter, what failed first; no meter where the interval is open.

    Gates that do not apply come last.
    """
    order = ("REJECT", "HOLD", "PROMOTE")
    outcomes = sorted(
        result.judgement.results,
        key=lambda outcome: (
            order.index(outcome.verdict),
            outcome.estimate is None,
        ),
    )
    return [(outcome, _meter(outcome)) for outcome in outcomes]


def _passed_and_failed(result: StageResult) -> tuple[list[str], list[str]]:
    """Return the reasons that decided, without the verdict before them, and the others.

    Where everything passed, nothing speaks against the model and the reasons are the others.
    """
    decisive: list[str] = []
    others: list[str] = []
    for reason in result.judgement.reasons:
        passed = reason.startswith("PROMOTE: ")
        (others if passed else decisive).append(reason.removeprefix("PROMOTE: "))
    return decisive, others


def _meter(outcome: GateResult) -> Meter | None:
    estimate, limit = outcome.estimate, outcome.limit
    if (
        estimate is None
        or limit is None
        or not all(map(math.isfinite, (estimate.low, estimate.high)))
    ):
        return None
    reach = limit if outcome.reach is None else outcome.reach
    marks = (estimate.low, estimate.high, estimate.value, limit, reach)
    low, high = min(marks), max(marks)
    span = 1.24 * ((high - low) or 1.0)
    start = (low + high - span) / 2

    def percent(value: float) -> float:
        return round(100.0 * (value - start) / span, 2)

    left = percent(estimate.low)
    return Meter(
        left=left,
        width=max(0.6, round(percent(estimate.high) - left, 2)),
        value=percent(estimate.value),
        limit=percent(limit),
        passes_above=not outcome.rule.startswith("upper"),
        reach=None if outcome.reach is None else percent(outcome.reach),
    )


def vice_rows(results: Sequence[StageResult]) -> list[tuple[str, str, Estimate, Estimate]]:
    """Vice, its meaning, the policy's rate and the increase over SFT; the largest first."""
    reports: list[EvaluationReport] = [
        result.report for result in results if result.report.stage == "policy"
    ]
    if not reports:
        return []
    metrics = reports[-1].metrics
    rows = [
        (name, VICES.get(name, "as configured"), metrics[f"policy/{name}"], increase)
        for metric, increase in metrics.items()
        if metric.startswith("policy/") and metric.endswith("_increase")
        for name in [metric.removeprefix("policy/").removesuffix("_increase")]
    ]
    return sorted(rows, key=lambda row: -row[3].value)


def place(address: str) -> str:
    """Name a run by its address, or by its id where that is no address others can follow."""
    host = urlsplit(address).hostname if address.startswith(("http://", "https://")) else None
    if host is None or host == "localhost" or host.startswith("127."):
        return f"MLflow run {address.rsplit('/', 1)[-1]}"
    return address


def how_right(evaluated: EvaluationReport) -> str:
    """Say how right the judge is on held-out pairs, and how right it could be."""
    right, ceiling = evaluated.judge_accuracy, evaluated.judge_ceiling
    if right is None:
        return ""
    most = f"{ceiling.value:.2f} by a beta model" if ceiling else ""
    allowed = f"; the annotators' own disagreement allows {most}" if most else ""
    asked = f"of the pairs of {right.num_samples} held-out dialogues"
    return f", right on {right.value:.2f} {asked}{allowed}"


def errors_shared(results: Mapping[str, StageResult]) -> str:
    """Say whether the judge errs where the reward model errs; empty where it was not measured.

    Wrong labels count as errors of both, so that much is said of them as well.
    """
    evaluated = results["evaluate"].report if "evaluate" in results else None
    phi = evaluated.metrics.get(f"policy/{ERROR_CORRELATION}") if evaluated else None
    if evaluated is None or phi is None:
        return ""
    judge, ceiling = evaluated.judge_accuracy, evaluated.judge_ceiling
    reward = (
        results["reward"].report.metrics.get("reward/heldout_accuracy")
        if ("reward" in results)
        else None
    )
    text = (
        f"The judge's errors and the reward model's correlate by {phi.value:.2f} "
        f"[{phi.low:.2f}, {phi.high:.2f}] on held-out pairs ({phi.num_samples} dialogues). A judge "
        "that errs as the reward model does cannot see that it is exploited: 1 is the same errors."
    )
    if judge and ceiling and reward:
        alone = correlation_by_noise(judge.value, reward.value, ceiling.value)
        text += f" Labels that are wrong make {alone:.2f} of it where the two err independently."
    return text


NUM_SUITE_ANSWERS = 30
"""Answers shown of each suite; the file has all."""


def shown_suites(results: Sequence[StageResult]) -> list[ShownSuite]:
    """Return every suite of a run with its metrics and the answers that changed first."""
    return [
        ShownSuite(
            name=name,
            record=record,
            metrics={
                metric.removeprefix(f"suite/{name}/"): estimate
                for metric, estimate in result.report.metrics.items()
                if metric.startswith(f"suite/{name}/")
            },
            answers=tuple(read_records(record.answers, SuiteAnswer)[:NUM_SUITE_ANSWERS])
            if record.answers.is_file()
            else (),
            baseline="champion" if record.baseline == result.report.champion else "SFT",
        )
        for result in results
        for name, record in result.report.suites.items()
    ]


def number(value: float) -> str:
    """Three or four significant digits, as a person writes them."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "n/a"
    return f"{value:.4g}" if abs(value) >= 1000 or value == 0 else f"{value:.3g}"


def interval(estimate: Estimate) -> str:
    """``[low, high]``."""
    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def duration(seconds: float) -> str:
    """``75`` to ``1 min 15 s``, ``7500`` to ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
