import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlhf_core.config import GateConfig, GatesConfig, PromotionConfig
from rlhf_core.errors import MissingMetricError
from rlhf_core.evaluation.gates import apply_gate, decide, describe_look, slice_results
from rlhf_core.schema import Estimate, EvaluationReport, Look, ModelRef

MODEL = ModelRef(
    name="rlhf-policy", version="7", uri="models:/rlhf-policy/7", path=Path("m"), sha256="s",
    kind="causal", run_id="r",
)  # fmt: skip
AT_LEAST = GateConfig(metric="policy/win_rate", at_least=0.55, min_samples=300)
AT_MOST = GateConfig(metric="policy/flattery_increase", at_most=0.05, min_samples=100)


def report(num_samples=500, confidence=0.95, **intervals):
    return EvaluationReport(
        stage="policy",
        model=MODEL,
        metrics={
            f"policy/{name}": Estimate(
                value=(low + high) / 2, low=low, high=high, num_samples=num_samples,
                confidence=confidence,
            )
            for name, (low, high) in intervals.items()
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.56, 0.64, "PROMOTE"),
        (0.55, 0.64, "PROMOTE"),  # reaching it is enough
        (0.54, 0.64, "HOLD"),  # the point estimate of 0.59 does not count
        (0.46, 0.55, "HOLD"),
        (0.46, 0.549, "REJECT"),
    ],
)
def test_at_least_tests_the_lower_bound(low, high, verdict):
    assert apply_gate(AT_LEAST, report(win_rate=(low, high))).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.03, "PROMOTE"),
        (-0.02, 0.05, "PROMOTE"),
        (0.01, 0.09, "HOLD"),
        (0.05, 0.09, "HOLD"),
        (0.06, 0.2, "REJECT"),
    ],
)
def test_at_most_tests_the_upper_bound(low, high, verdict):
    assert apply_gate(AT_MOST, report(flattery_increase=(low, high))).verdict == verdict


@pytest.mark.parametrize("bounds", [(0.9, 0.95), (0.1, 0.2)])
def test_too_few_samples_hold_whatever_the_bound_says(bounds):
    result = apply_gate(AT_LEAST, report(num_samples=299, win_rate=bounds))
    assert result.verdict == "HOLD"
    assert "299 samples are too few, the gate asks for 300" in result.reason


@pytest.mark.parametrize(
    "bounds", [(math.nan, math.nan), (math.nan, 0.9), (0.9, math.nan), (-math.inf, math.inf)]
)
def test_what_is_not_known_never_promotes(bounds):
    assert apply_gate(AT_LEAST, report(win_rate=bounds)).verdict == "HOLD"


@pytest.mark.parametrize(
    ("gate", "bounds", "num_samples", "told"),
    [
        (AT_LEAST, (0.54, 0.64), 500, "about 790 samples in place of 500 would pass it"),
        (AT_LEAST, (0.48, 0.58), 500, "about 3200 samples in place of 500 would reject the model"),
        (AT_LEAST, (0.56, 0.64), 200, "about 300 samples in place of 200 would pass it"),
        (AT_LEAST, (0.50, 0.60), 500, "more samples decide little"),
        (AT_MOST, (0.0, 0.06), 500, "about 1200 samples in place of 500 would pass it"),
        (AT_MOST, (0.04, 0.10), 500, "about 1200 samples in place of 500 would reject the model"),
        (AT_LEAST, (math.nan, math.nan), 500, "at least 300 samples that can be measured"),
        (AT_LEAST, (0.56, 0.64), 500, ""),
        (AT_LEAST, (0.46, 0.54), 500, ""),
    ],
)
def test_a_gate_that_holds_says_how_many_samples_would_decide_it(gate, bounds, num_samples, told):
    name = gate.metric.removeprefix("policy/")
    needed = apply_gate(gate, report(num_samples, **{name: bounds})).needed
    assert bool(needed) == bool(told)
    assert told in needed


def test_a_metric_that_was_not_measured_raises_and_says_what_was():
    with pytest.raises(MissingMetricError, match=r"'policy/win_rate' was not .* policy/kl"):
        apply_gate(AT_LEAST, report(kl=(0.0, 1.0)))


def test_an_interval_of_another_confidence_is_not_the_one_that_was_asked_for():
    with pytest.raises(MissingMetricError, match=r"measured at 90%, the gate asks for 95%"):
        apply_gate(AT_LEAST, report(confidence=0.9, win_rate=(0.6, 0.7)))


def test_without_gates_nobody_is_promoted():
    decision = decide((), report(win_rate=(0.9, 0.95)))
    assert decision.verdict == "HOLD"
    assert "no gates are configured" in decision.reasons[0]


@pytest.mark.parametrize("champion", [None, "models:/rlhf-policy/1"])
def test_the_champion_alone_is_no_list_of_gates(champion):
    measured = report(win_rate=(0.9, 0.95), win_rate_over_champion=(0.9, 0.95))
    measured = measured.model_copy(update={"champion": champion})
    decision = decide(PromotionConfig().gates(), measured)
    assert decision.verdict == "HOLD"
    assert "no gates are configured" in decision.reasons[0]


@pytest.mark.parametrize(
    ("win", "vice", "verdict"),
    [
        ((0.6, 0.7), (0.0, 0.01), "PROMOTE"),
        ((0.5, 0.7), (0.0, 0.01), "HOLD"),
        ((0.6, 0.7), (0.1, 0.2), "REJECT"),
        ((0.5, 0.7), (0.1, 0.2), "REJECT"),
    ],
)
def test_the_worst_gate_decides(win, vice, verdict):
    decision = decide((AT_LEAST, AT_MOST), report(win_rate=win, flattery_increase=vice))
    assert decision.verdict == verdict
    assert len(decision.results) == 2
    assert decision.reasons[0].startswith(verdict)


def test_a_doubt_about_the_measurement_holds_what_the_gates_would_pass():
    decision = decide((AT_LEAST,), report(win_rate=(0.6, 0.7)), doubts=("the judge is asleep.",))
    assert decision.verdict == "HOLD"
    assert decision.reasons[0] == "HOLD: the judge is asleep."


def test_a_reason_names_metric_value_interval_samples_and_rule():
    result = apply_gate(AT_LEAST, report(win_rate=(0.52, 0.56)))
    assert result.reason == (
        "policy/win_rate = 0.54 [0.52, 0.56] (95%, n = 500): the lower bound must be at least "
        "0.55; the interval straddles it."
    )
    assert result.rule == "lower bound >= 0.55 (95%, n >= 300)"


@pytest.mark.parametrize(
    ("bound", "interval", "words"),
    [
        ({"at_least": -0.1}, (-0.05, 0.0), "the lower bound is at least -0.1."),
        ({"at_least": -0.1}, (-0.2, 0.0), "the lower bound must be at least -0.1;"),
        ({"at_most": -0.1}, (0.0, 0.2), "even the lower bound is above -0.1."),
        ({"at_most": 0.1}, (0.0, 0.05), "the upper bound is at most 0.1."),
    ],
)
def test_a_reason_gives_the_bound_with_its_sign(bound, interval, words):
    gate = GateConfig(metric="policy/win_rate", min_samples=1, **bound)
    assert words in apply_gate(gate, report(win_rate=interval)).reason


def test_a_vice_that_grew_is_named_in_words():
    decision = decide((AT_MOST,), report(flattery_increase=(0.3, 0.4)))
    assert decision.reasons == (
        "REJECT: flattery: it flatters the user. policy/flattery_increase = 0.35 [0.3, 0.4] "
        "(95%, n = 500): even the lower bound is above 0.05.",
    )
    clean = decide((AT_MOST,), report(flattery_increase=(-0.01, 0.01)))
    assert "flatters" not in clean.reasons[0]


def test_a_vice_of_ones_own_is_named_too():
    gate = GateConfig(metric="policy/pirate_increase", at_most=0.1)
    assert "pirate grew over SFT" in decide((gate,), report(pirate_increase=(0.3, 0.4))).reasons[0]


def gates(**stages):
    return GatesConfig.model_validate({"sft": [], "reward": [], "policy": [], **stages})


def test_gold_cannot_decide():
    with pytest.raises(ValidationError, match="no gate may decide by them"):
        gates(policy=[{"metric": "gold/win_rate", "at_least": 0.6}])


def test_a_gate_on_what_another_stage_measures_is_refused_before_the_run():
    with pytest.raises(ValidationError, match="this stage measures sft/"):
        gates(sft=[{"metric": "policy/win_rate", "at_least": 0.6}])


def test_one_metric_has_one_confidence():
    with pytest.raises(ValidationError, match="gated at two confidences"):
        gates(
            policy=[
                {"metric": "policy/kl", "at_least": 0.1, "confidence": 0.9},
                {"metric": "policy/kl", "at_most": 9.0},
            ]
        )


def test_the_judge_is_asked_what_the_reward_model_is_asked_unless_told_otherwise():
    asked = gates(reward=[{"metric": "reward/heldout_accuracy", "at_least": 0.6}])
    assert asked.of_stage("judge")[0].metric == "judge/heldout_accuracy"
    assert asked.of_stage("judge")[0].at_least == 0.6
    own = gates(judge=[{"metric": "judge/heldout_accuracy", "at_least": 0.7}])
    assert own.of_stage("judge")[0].at_least == 0.7
    assert gates(judge=[]).of_stage("judge") == ()


CHAMPION = "models:/rlhf-policy/3"


def against_champion(low, high, slices=None, num_samples=60):
    measured = report(win_rate=(0.6, 0.7), win_rate_over_champion=(low, high))
    breakdown = {
        name: report(num_samples, win_rate_over_champion=bounds).metrics
        for name, bounds in (slices or {}).items()
    }
    return measured.model_copy(update={"champion": CHAMPION, "breakdown": breakdown})


def held_to_champion(measured, **rule):
    rule = PromotionConfig(**rule)
    return decide((AT_LEAST, *rule.gates()), measured, promotion=rule)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.51, 0.6, "PROMOTE"), (0.5, 0.6, "HOLD"), (0.45, 0.55, "HOLD"), (0.3, 0.49, "REJECT")],
)
def test_a_candidate_has_to_be_better_than_the_champion(low, high, verdict):
    """A lower bound of exactly one half proves nothing; better than SFT alone is not enough."""
    decision = held_to_champion(against_champion(low, high))
    assert decision.verdict == verdict
    rules = {result.gate: result.rule for result in decision.results}
    assert rules["policy/win_rate_over_champion"].startswith("lower bound > 0.5 (")


def test_without_a_champion_its_gates_are_shown_as_not_applicable():
    decision = held_to_champion(report(win_rate=(0.6, 0.7)))
    assert decision.verdict == "PROMOTE"
    shown = decision.results[-1]
    assert shown.gate == "policy/win_rate_over_champion"
    assert shown.estimate is None
    assert "not applicable, for there is no champion" in shown.reason


def test_with_a_champion_that_was_not_measured_nothing_is_assumed():
    unmeasured = report(win_rate=(0.6, 0.7)).model_copy(update={"champion": CHAMPION})
    with pytest.raises(MissingMetricError, match="win_rate_over_champion"):
        held_to_champion(unmeasured)


NOT_INFERIOR = {
    "rule": "not_inferior",
    "margin": 0.05,
    "because": {"metric": "policy/length_ratio_over_champion", "at_most": 0.9},
}


@pytest.mark.parametrize(
    ("low", "ratio", "verdict"),
    [(0.45, (0.7, 0.9), "PROMOTE"), (0.44, (0.7, 0.9), "HOLD"), (0.45, (0.85, 0.95), "HOLD")],
)
def test_a_candidate_that_is_as_good_needs_a_reason(low, ratio, verdict):
    measured = against_champion(low, 0.55)
    metrics = measured.metrics | report(length_ratio_over_champion=ratio).metrics
    decision = held_to_champion(measured.model_copy(update={"metrics": metrics}), **NOT_INFERIOR)
    assert decision.verdict == verdict


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "not_inferior", "margin": 0.05},
        {key: value for key, value in NOT_INFERIOR.items() if key != "margin"},
        {"margin": 0.05},
        {**NOT_INFERIOR, "because": {"metric": "sft/heldout_nll", "at_most": 1.0}},
    ],
)
def test_half_a_rule_is_refused(rule):
    with pytest.raises(ValidationError):
        PromotionConfig(**rule)


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ((0.31, 0.6), "PROMOTE"),
        ((0.29, 0.6), "HOLD"),
        ((0.31, 0.49), "HOLD"),
        ((0.1, 0.29), "REJECT"),
    ],
)
def test_a_candidate_may_be_worse_than_the_champion_in_no_slice(bounds, verdict):
    measured = against_champion(0.55, 0.6, {"style=terse": (0.5, 0.7), "style=odd": bounds})
    decision = held_to_champion(measured)
    assert decision.verdict == verdict
    if verdict != "PROMOTE":
        assert "[style=odd]" in decision.reasons[0]


@pytest.mark.parametrize(
    ("bounds", "needed"),
    [
        ((0.31, 0.49), "more samples do not pass it, if the value stays at 0.4"),
        ((0.22, 0.52), "more samples do not pass it"),  # where 0.3 is cleared, 0.44 is the highest
        ((0.25, 0.65), "about 110 samples in place of 60 would pass it"),
        ((0.31, 0.6), ""),
    ],
)
def test_what_a_slice_needs_is_said_of_both_bounds(bounds, needed):
    measured = against_champion(0.55, 0.6, {"style=odd": bounds})
    (result,) = slice_results(PromotionConfig(), measured)
    assert needed in result.needed
    assert bool(needed) == bool(result.needed)
    assert (result.limit, result.reach) == (0.3, 0.5)


def test_a_slice_is_asked_by_its_interval_of_a_first_look():
    over = "policy/win_rate_over_champion"
    measured = against_champion(0.55, 0.6, {"style=odd": (0.2, 0.7)})
    assert held_to_champion(measured).verdict == "HOLD"  # as earlier builds recorded it
    first = measured.breakdown["style=odd"][over].model_copy(update={"low": 0.31, "high": 0.6})
    measured = measured.model_copy(update={"slices_over_champion": {"style=odd": first}})
    assert held_to_champion(measured).verdict == "PROMOTE"


def test_small_slices_are_shown_and_hold_nobody_back():
    measured = against_champion(0.55, 0.6, {"style=odd": (0.1, 0.2)}, num_samples=39)
    assert slice_results(PromotionConfig(), measured) == ()
    assert slice_results(PromotionConfig(slice_margin=None), against_champion(0.5, 0.6)) == ()


def test_a_slice_can_be_gated():
    gate = GateConfig(metric="policy/win_rate", at_least=0.5, slice="style=terse", min_samples=50)
    slices = {"style=terse": report(60, win_rate=(0.45, 0.6)).metrics}
    measured = report(win_rate=(0.6, 0.7)).model_copy(update={"breakdown": slices})
    result = apply_gate(gate, measured)
    assert (result.gate, result.verdict) == ("policy/win_rate [style=terse]", "HOLD")
    unseen = apply_gate(gate.model_copy(update={"slice": "style=shouted"}), measured)
    assert unseen.verdict == "HOLD"
    assert "no held-out sample is in this slice; slices are style=terse" in unseen.reason


def test_a_gate_on_a_slice_of_what_has_none_is_refused():
    gate = {"metric": "policy/kl", "at_most": 8.0, "slice": "style=terse"}
    with pytest.raises(ValidationError, match="policy/kl is not measured by slice"):
        GatesConfig(sft=(), reward=(), policy=(gate,))


@pytest.mark.parametrize(("number", "exhausted"), [(1, False), (2, False), (17, False), (18, True)])
def test_a_budget_is_exhausted_when_intervals_are_twice_as_wide(number, exhausted):
    look = Look(entry="models:/rlhf-looks/1", held_out="h" * 64, number=number)
    said = describe_look(look)
    assert ("The test set's budget is exhausted; give it held-out prompts" in said) is exhausted
    assert said.startswith(f"look {number} at held-out prompts hhhh")
    assert ("times as wide" in said) is (number > 1)


def test_simulated_decisions_keep_what_they_promise():
    """A few of the trials, so with more room than the benchmark's own bounds."""
    from benchmarks.decisions import measure

    found = {what: value for what, value, _ in measure(scale=0.04)}
    promoted = found["campaigns of 30 nights with a false promotion"]
    assert int(promoted.split(" ")[0]) <= 5, promoted
    assert found["champions replaced by one that loses 55:45"] == "0 of 40"
    assert float(found["power at true 0.6, n = 500, look 1"].split("%")[0]) > 50
