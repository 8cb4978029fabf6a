"""The verdict: every gate on the confidence bound of its metric, the worst one decides."""

import math
from collections.abc import Sequence

from rlhf_core.config import GateConfig, PromotionConfig
from rlhf_core.config.metric_names import CHAMPION_METRICS, CORRECTED, OVER_CHAMPION
from rlhf_core.errors import MissingMetricError
from rlhf_core.evaluation.corrected import MIN_LABELS
from rlhf_core.evaluation.monitors import VICES
from rlhf_core.evaluation.same_cause import reasons_of
from rlhf_core.schema import (
    Estimate,
    EvaluationReport,
    Forecast,
    GateResult,
    Look,
    PromotionDecision,
    Verdict,
    share_of_round,
)
from rlhf_core.statistics.intervals import Resampling

WIN_RATE_CORRECTED = f"policy/{CORRECTED}"
_SEVERITY: dict[Verdict, int] = {"PROMOTE": 0, "HOLD": 1, "REJECT": 2}


def apply_gate(gate: GateConfig, report: EvaluationReport) -> GateResult:
    """PROMOTE if the confidence bound clears the threshold, REJECT if the whole interval fails.

    In between, with too few samples, or with an interval that is not a number, HOLD: more data may
    decide, a model may not move on meanwhile.

    Raises:
        MissingMetricError: the report lacks the metric, or measured it at another confidence. A
            gate never assumes a value.
    """
    if report.champion is None and _asks_about_champion(gate):
        return _unmeasured(gate, "PROMOTE", "not applicable, for there is no champion yet")
    if gate.metric == WIN_RATE_CORRECTED and gate.metric not in report.metrics:
        return _unmeasured(gate, "HOLD", _without_votes(report))
    if gate.slice is not None:
        measured = report.breakdown.get(gate.slice, {})
        if gate.metric not in measured:
            return _unseen_slice(gate, report)
        return judge_estimate(gate, measured[gate.metric])
    return judge_estimate(gate, report.metric(gate.metric))


def judge_estimate(gate: GateConfig, estimate: Estimate) -> GateResult:
    """Apply a gate to a measurement of anything: a model, or a dataset.

    Raises:
        MissingMetricError: it was measured at another confidence than the gate asks for.
    """
    if not math.isclose(estimate.confidence, gate.confidence):
        raise MissingMetricError(
            f"{gate.metric} was measured at {_percent(estimate.confidence)}, the gate asks for "
            f"{_percent(gate.confidence)}; measure it again"
        )
    verdict, because = _judge(gate, estimate)
    vice = _vice(gate, verdict)
    needed, forecast = _needed(gate, estimate) if verdict == "HOLD" else ("", None)
    return GateResult(
        gate=gate_name(gate),
        verdict=verdict,
        estimate=estimate,
        rule=_rule(gate),
        reason=f"{vice}{_measured(gate, estimate)}: {because}.",
        limit=gate.at_least if gate.at_least is not None else gate.at_most,
        min_samples=gate.min_samples,
        needed=needed,
        forecast=forecast,
    )


FAR = 100
"""So many times the samples are no advice: the value is on its threshold."""


def _needed(gate: GateConfig, estimate: Estimate) -> tuple[str, Forecast | None]:
    """Say how many samples would decide a gate that holds, from the width of its interval.

    The end of the interval that has to cross the threshold lies d from the value, and the threshold
    lies t from it; widths shrink with the square root of the number of samples, so n (d / t)^2
    of them bring that end to the threshold, if the value stays.
    """
    low, value, high = estimate.low, estimate.value, estimate.high
    limit = gate.at_least if gate.at_least is not None else _at_most(gate)
    count = estimate.num_samples
    name = gate_name(gate)
    if not all(map(math.isfinite, (low, value, high))) or count == 0:
        wanted = Forecast(outcome="measure", samples=gate.min_samples, there=0)
        return f"{name}: at least {wanted.samples} samples that can be measured", wanted
    margin = value - limit
    reach = value - low if margin > 0 else high - value
    if margin == 0 or reach > abs(margin) * math.sqrt(FAR):
        return f"{name}: more samples decide little, its value is on the threshold {limit:g}", None
    needed = max(gate.min_samples, _rounded_up(count * (reach / margin) ** 2))
    passes = (margin > 0) == (gate.at_least is not None)
    told = (
        f"{name}: about {needed} samples in place of {count} would "
        f"{'pass it' if passes else 'reject the model'}, if the value stays at {value:.3g}"
    )
    return told, Forecast(outcome="pass" if passes else "reject", samples=needed, there=count)


def _rounded_up(count: float) -> int:
    """To two digits, for it is a forecast."""
    unit = int(10 ** max(0, math.floor(math.log10(max(count, 1.0))) - 1))
    return math.ceil(count / unit) * unit


def decide(
    gates: Sequence[GateConfig],
    report: EvaluationReport,
    *,
    doubts: Sequence[str] = (),
    promotion: PromotionConfig | None = None,
    extra_results: Sequence[GateResult] = (),
) -> PromotionDecision:
    """Apply every gate, so that the decision names all failures and not only the first.

    The verdict is the worst of its parts; without gates of the stage's own it is HOLD, whatever is
    asked about the champion.

    Args:
        gates: of the stage.
        report: what was measured.
        doubts: why the measurement itself is not to be trusted; each holds the model back.
        promotion: how a candidate is held to the champion slice by slice; None leaves slices out.
        extra_results: what was decided about suites; a part of the verdict as any gate is.

    Raises:
        MissingMetricError: a gate asks for what was not measured.
    """
    if all(_asks_about_champion(gate) for gate in gates):
        doubts = (*doubts, "no gates are configured for this stage; nothing was asked.")
    results = (*(apply_gate(gate, report) for gate in gates), *extra_results)
    if promotion is not None and report.champion is not None:
        results += slice_results(promotion, report)
    reasons: list[tuple[Verdict, str]] = reasons_of(results)
    reasons += [("HOLD", doubt) for doubt in doubts]
    reasons.sort(key=lambda reason: -_SEVERITY[reason[0]])
    return PromotionDecision(
        stage=report.stage,
        model=report.model,
        verdict=reasons[0][0],
        results=results,
        reasons=tuple(f"{verdict}: {reason}" for verdict, reason in reasons),
    )


def slice_results(promotion: PromotionConfig, report: EvaluationReport) -> tuple[GateResult, ...]:
    """Hold a candidate to the champion in every slice that is large enough.

    A slice passes if the lower bound reaches one half less the margin and the upper bound one half:
    not much worse is shown, and worse is not. Small slices are noisy, so the margin is wide, and
    looks do not widen their intervals: a slice holds back and promotes nobody.
    """
    if promotion.slice_margin is None:
        return ()
    metric = f"policy/{OVER_CHAMPION}"
    results = []
    slices = report.slices_over_champion or {
        name: measured[metric] for name, measured in report.breakdown.items() if metric in measured
    }
    for name, estimate in slices.items():
        if estimate.num_samples < promotion.min_slice_samples:
            continue
        gate = GateConfig(
            metric=metric,
            at_least=round(0.5 - promotion.slice_margin, 12),
            confidence=estimate.confidence,
            min_samples=promotion.min_slice_samples,
            slice=name,
        )
        results.append(_reaching_champion(gate, estimate))
    return tuple(results)


_AS_GOOD = 0.5
"""Win rate over the champion of an answer that is as good."""


def _reaching_champion(gate: GateConfig, estimate: Estimate) -> GateResult:
    """Apply a slice's gate on the lower bound, and ask that the upper one says as good."""
    result = judge_estimate(gate, estimate)
    told: dict[str, object] = {
        "rule": f"{result.rule} and upper bound >= {_AS_GOOD:g}",
        "reach": _AS_GOOD,
    }
    if result.verdict == "PROMOTE" and estimate.high < _AS_GOOD:
        told["verdict"] = "HOLD"
        told["reason"] = f"{_measured(gate, estimate)}: the champion is better here."
    passed = told.get("verdict", result.verdict) == "PROMOTE"
    if not passed and _high_when_passed(gate, estimate) < _AS_GOOD:
        told["needed"] = (
            f"{gate_name(gate)}: more samples do not pass it, if the value stays at "
            f"{estimate.value:.3g}: the champion is better here"
        )
        told["forecast"] = None
    return result.model_copy(update=told)


def _high_when_passed(gate: GateConfig, estimate: Estimate) -> float:
    """Forecast the upper bound when so many samples are there that the lower one passes."""
    limit = math.nan if gate.at_least is None else gate.at_least
    above = estimate.value - limit
    if above <= 0:
        return math.nan  # it is not going to pass
    below = max(estimate.value - estimate.low, above)
    return estimate.value + (estimate.high - estimate.value) * above / below


def _unseen_slice(gate: GateConfig, report: EvaluationReport) -> GateResult:
    """Nothing of a slice was held out: more data may decide."""
    slices = ", ".join(report.breakdown) or "none"
    return _unmeasured(gate, "HOLD", f"no held-out sample is in this slice; slices are {slices}")


def _without_votes(report: EvaluationReport) -> str:
    """Say which commands bring the votes that are missing."""
    there = f"on {report.people.pairs} pairs" if report.people else "on none of the answers"
    return (
        f"not measured: there are votes {there}, expected at least {MIN_LABELS}; "
        "`rlhf collect CONFIG --evaluation RUN` draws pairs, `rlhf label push` and `rlhf label "
        "pull` bring people's votes on them, `rlhf evaluate CONFIG --run-id RUN` decides again"
    )


def _unmeasured(gate: GateConfig, verdict: Verdict, why: str) -> GateResult:
    return GateResult(
        gate=gate_name(gate),
        verdict=verdict,
        estimate=None,
        rule=_rule(gate),
        reason=f"{gate_name(gate)}: {why}.",
    )


def _asks_about_champion(gate: GateConfig) -> bool:
    return gate.metric.removeprefix("policy/") in CHAMPION_METRICS


EXHAUSTED_WIDTH = 2.0
"""Intervals so many times as wide as at a first look: as if a quarter of the prompts were left."""
RENEW = (
    "give it held-out prompts of which most are new: another data.prompts.heldout_path, or new "
    "data to split"
)


def width_at(look: Look) -> float:
    """How many times as wide as at the first look the intervals of a gate at 95% are."""
    return Resampling(share=look.share).widening


def describe_look(look: Look) -> str:
    """Say which look it is, what that costs, and whether the test set's budget is exhausted."""
    width = width_at(look)
    text = f"look {look.number} at held-out prompts {look.held_out[:12]}"
    if look.number > 1:
        text += (
            f": intervals are {width:.2f} times as wide as at the first, as of "
            f"{100 / width**2:.0f}% of the prompts"
        )
    return text + (
        f". The test set's budget is exhausted; {RENEW}" if width >= EXHAUSTED_WIDTH else ""
    )


def deciding_confidence(
    metric: str, confidence: float, look: Look | None, votes_round: int | None = None
) -> float:
    """Return the confidence of the interval that decides: later looks, and votes, are surer.

    Args:
        metric: what is measured.
        confidence: asked of it by its gate at a first look.
        look: at the held-out set; None where looks are not counted.
        votes_round: number of the decision with people's votes, from 1; they correct one metric.
    """
    if look is None:
        return confidence
    share = look.share
    if votes_round is not None and metric == WIN_RATE_CORRECTED:
        share *= share_of_round(votes_round)
    return Resampling(confidence, share=share).level


def gate_name(gate: GateConfig) -> str:
    """Return what a gate is called: its metric, and its slice in brackets."""
    return gate.metric if gate.slice is None else f"{gate.metric} [{gate.slice}]"


def _measured(gate: GateConfig, estimate: Estimate) -> str:
    return (
        f"{gate_name(gate)} = {estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}] "
        f"({_percent(estimate.confidence)}, n = {estimate.num_samples})"
    )


def _judge(gate: GateConfig, estimate: Estimate) -> tuple[Verdict, str]:
    if estimate.num_samples < gate.min_samples:
        return "HOLD", (
            f"{estimate.num_samples} samples are too few, the gate asks for {gate.min_samples}"
        )
    if math.isnan(estimate.value + estimate.low + estimate.high):
        return "HOLD", "the measurement is not a number"
    if gate.at_least is not None:
        limit, low, high = gate.at_least, estimate.low, estimate.high
        stated = limit
        wanted = "more than" if _is_next_above(limit) else "at least"
        near, far, side = "lower", "upper", "below"
    else:
        # At most is at least on the mirrored interval.
        stated = _at_most(gate)
        limit, low, high = -stated, -estimate.high, -estimate.low
        near, far, side, wanted = "upper", "lower", "above", "at most"
    if low >= limit:
        return "PROMOTE", f"the {near} bound is {wanted} {stated:g}"
    if high < limit:
        return "REJECT", f"even the {far} bound is {side} {stated:g}"
    return "HOLD", f"the {near} bound must be {wanted} {stated:g}; the interval straddles it"


def _at_most(gate: GateConfig) -> float:
    return math.nan if gate.at_most is None else gate.at_most


def _rule(gate: GateConfig) -> str:
    if gate.at_least is None:
        bound = f"upper bound <= {_at_most(gate):g}"
    else:
        sign = ">" if _is_next_above(gate.at_least) else ">="
        bound = f"lower bound {sign} {gate.at_least:g}"
    return f"{bound} ({_percent(gate.confidence)}, n >= {gate.min_samples})"


def _is_next_above(limit: float) -> bool:
    """Whether a limit is a round number's next neighbour: that number itself is not enough."""
    return math.nextafter(float(f"{limit:g}"), math.inf) == limit


def _vice(gate: GateConfig, verdict: Verdict) -> str:
    """Name what went wrong in words, for a gate that limits the growth of a vice."""
    name = gate.metric.removeprefix("policy/")
    if verdict == "PROMOTE" or not name.endswith("_increase"):
        return ""
    vice = name.removesuffix("_increase")
    meaning = VICES.get(vice, f"{vice} grew over SFT")
    return f"{vice}: {meaning}. " if verdict == "REJECT" else f"{vice} not ruled out. "


def _percent(confidence: float) -> str:
    return f"{round(100 * confidence, 6):.6g}%"
