"""Gates as settings ask for them: one that cannot fail asks for nothing."""

from pathlib import Path

import pytest

from rlhf_core.config import GateConfig, RequiredGates, load_config
from rlhf_core.config.load import load_required_gates
from rlhf_core.errors import ConfigError

DEMO = Path(__file__).parents[2] / "configs/demo.yaml"


@pytest.mark.parametrize(
    "gate",
    [
        "policy/win_rate, at_least: 0.0",
        "policy/win_rate, at_least: -3",
        "policy/win_rate_over_champion, at_most: 1.0",
        "policy/flattery, at_most: 1",
        "policy/flattery_increase, at_most: 1.0",
        "policy/flattery_increase, at_least: -1.0",
        "policy/length_ratio, at_least: 0",
        "policy/reference_perplexity, at_least: 1",
        "reward/calibration_error, at_most: 1.5",
        "reward/accuracy_over_length, at_least: -1",
        "judge/heldout_accuracy, at_least: 0",
        "sft/heldout_nll, at_least: 0",
    ],
)
def test_a_gate_that_cannot_fail_is_refused(gate):
    stage = gate.partition("/")[0]
    with pytest.raises(ConfigError, match=r"lies between .* cannot fail"):
        load_config(DEMO, {f"gates.{stage}": f"[{{metric: {gate}, min_samples: 1}}]"})


def test_a_gate_of_a_dataset_or_of_the_promotion_that_cannot_fail_is_refused():
    with pytest.raises(ConfigError, match="cannot fail"):
        load_config(DEMO, {"data.gates": "[{metric: data/length_auc, at_least: 0}]"})
    because = "{metric: policy/length_ratio_over_champion, at_least: 0}"
    rule = f"{{rule: not_inferior, margin: 0.1, because: {because}}}"
    with pytest.raises(ConfigError, match="cannot fail"):
        load_config(DEMO, {"promotion": rule})


def gate(**fields):
    return GateConfig(**{"metric": "policy/win_rate", "at_least": 0.55, **fields})


@pytest.mark.parametrize(
    ("own", "as_much"),
    [
        ({}, True),
        ({"at_least": 0.6, "min_samples": 500, "confidence": 0.99}, True),
        ({"at_least": 0.54}, False),
        ({"confidence": 0.9}, False),
        ({"min_samples": 50}, False),
        ({"slice": "style=terse"}, False),
        ({"at_least": None, "at_most": 0.9}, False),
        ({"metric": "policy/length_controlled_win_rate"}, False),
    ],
)
def test_a_required_gate_is_added_unless_a_run_asks_as_much(own, as_much):
    required = RequiredGates(policy=(gate(),))
    assert (required.missing("policy", (gate(**own),)) == ()) is as_much
    asked = required.added_to("policy", (gate(**own),))
    assert len(asked) == (1 if as_much else 2)
    assert len({each.confidence for each in asked if each.metric == gate().metric}) == 1


def test_a_metric_is_measured_at_the_highest_confidence_that_anybody_asks():
    required = RequiredGates(policy=(gate(confidence=0.99),))
    asked = required.added_to("policy", (gate(at_least=0.6),))
    assert [each.confidence for each in asked] == [0.99, 0.99]
    assert [each.at_least for each in asked] == [0.6, 0.55]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("policy: [{metric: policy/win_rate, at_least: 0.0}]", "cannot fail"),
        ("policy: [{metric: policy/charm, at_least: 0.1}]", "every run has to measure"),
        ("policy: [{metric: policy/kl, at_most: 5, slice: style=a}]", "not measured by slice"),
        ("politics: []", "politics"),
    ],
)
def test_required_gates_that_ask_nothing_or_of_nothing_are_refused(tmp_path, written, said):
    path = tmp_path / "required.yaml"
    path.write_text(written)
    with pytest.raises(ConfigError, match=said):
        load_required_gates(path)
