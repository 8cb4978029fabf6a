import pytest

from rlhf_core.config import GateConfig
from rlhf_core.evaluation.gates import decide, judge_estimate
from rlhf_core.evaluation.same_cause import forecasts_of, reasons_of
from rlhf_core.schema import Estimate, EvaluationReport, ModelRef

ASKED = {"policy/win_rate": 80, "policy/flattery_increase": 80, "policy/kl": 90}


def gate(metric, **settings):
    bound = {"at_most": 0.05} if metric.endswith("_increase") else {"at_least": 0.5}
    return GateConfig(metric=metric, min_samples=ASKED[metric], **bound, **settings)


def measured(value=0.6, num_samples=75):
    return Estimate(value=value, low=value - 0.01, high=value + 0.01, num_samples=num_samples)


def test_gates_with_too_few_samples_are_one_reason_and_the_others_their_own():
    model = ModelRef(
        name="m", version="7", uri="models:/m/7", path="m", sha256="s", kind="causal", run_id="r"
    )
    slices = {"topic=small talk": {"policy/win_rate": measured()}}
    report = EvaluationReport(
        stage="policy", model=model, metrics=dict.fromkeys(ASKED, measured()), breakdown=slices
    )
    gates = (*map(gate, ASKED), gate("policy/win_rate", slice="topic=small talk"))
    decision = decide(gates, report, doubts=("the judge has passed no gate.",))
    assert decision.reasons == (
        "HOLD: 3 gates want 80 samples and there are 75: policy/win_rate, policy/flattery_increase,"
        " policy/win_rate [topic=small talk].",
        "HOLD: policy/kl = 0.6 [0.59, 0.61] (95%, n = 75): 75 samples are too few, the gate asks "
        "for 90.",
        "HOLD: the judge has passed no gate.",
    )
    # What is recorded of each gate is its own.
    assert all("75 samples are too few" in result.reason for result in decision.results)


@pytest.mark.parametrize(
    ("value", "num_samples", "said"),
    [
        ((0.6, 0.04), 75, "about 80 samples in place of 75 would pass 2 gates, if their values"),
        ((0.4, 0.1), 75, "about 80 samples in place of 75 would reject the model by 2 gates, if"),
        ((0.6, 0.04), 0, "2 gates want at least 80 samples that can be measured: policy/win_rate"),
    ],
)
def test_what_would_decide_several_gates_is_said_once(value, num_samples, said):
    metrics = ("policy/win_rate", "policy/flattery_increase")
    held = [
        judge_estimate(gate(metric), measured(one, num_samples))
        for metric, one in zip(metrics, value, strict=True)
    ]
    (line,) = forecasts_of(held)
    assert said in line
    assert line.endswith("policy/win_rate, policy/flattery_increase")
    assert forecasts_of(held[:1]) == [held[0].needed]


def test_results_of_builds_that_recorded_no_numbers_are_told_one_by_one():
    held = [judge_estimate(gate(metric), measured()) for metric in ASKED]
    before = [one.model_copy(update={"forecast": None, "min_samples": None}) for one in held]
    assert forecasts_of(before) == [one.needed for one in held]
    assert reasons_of(before) == [(one.verdict, one.reason) for one in held]
