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
        ("policy: [{metric: policy/win_rte, at_least: 0.6}]", r"did you mean policy/win_rate\b"),
        ("policy: [{metric: policy/kl, at_most: 5, slice: style=a}]", "not measured by slice"),
        ("politics: []", "politics"),
    ],
)
def test_required_gates_that_ask_nothing_or_of_nothing_are_refused(tmp_path, written, said):
    path = tmp_path / "required.yaml"
    path.write_text(written)
    with pytest.raises(ConfigError, match=said):
        load_required_gates(path)


OWN = """
model: {base: base}
data: {preferences: {path: raw.jsonl}}
policy: {algorithm: ALGORITHM}
gates:
  sft: []
  reward: []
  policy:
    - {metric: policy/win_rate, at_least: 0.55}
    - {metric: policy/length_ratio, at_most: 1.5, confidence: 0.99}
    - {metric: policy/copying_increase, at_most: 0.3, min_samples: 50}
"""


def asked_of(tmp_path, algorithm="ppo", **overrides):
    (tmp_path / "own.yaml").write_text(OWN.replace("ALGORITHM", algorithm))
    return load_config(tmp_path / "own.yaml", overrides).gates_of("policy")


def test_settings_of_ones_own_get_gates_on_what_fools_a_judge(tmp_path):
    asked = {(each.metric, each.at_most is None): each for each in asked_of(tmp_path)}
    shipped = load_config(DEMO.with_name("qwen-hh.yaml")).gates.policy
    vices = {each.metric for each in shipped if each.metric.endswith("_increase")}
    assert vices <= {metric for metric, _ in asked}
    assert asked["policy/language_switch_increase", False].at_most == 0.05
    assert asked["policy/proxy_gap", False].at_most == 1.0


def test_a_named_gate_stands_in_place_of_the_default_of_its_metric_and_bound(tmp_path):
    asked = asked_of(tmp_path)
    copying = [each for each in asked if each.metric == "policy/copying_increase"]
    assert [(each.at_most, each.min_samples) for each in copying] == [(0.3, 50)]
    lengths = [each for each in asked if each.metric == "policy/length_ratio"]
    assert [(each.at_most, each.at_least, each.confidence) for each in lengths] == [
        (1.5, None, 0.99),
        (None, 0.7, 0.99),
    ]


def test_what_an_algorithm_does_not_measure_is_not_asked_of_it(tmp_path):
    metrics = {each.metric for each in asked_of(tmp_path, "dpo")}
    assert "policy/proxy_gap" not in metrics
    assert "policy/closing_increase" in metrics


def test_defaults_are_left_out_only_where_settings_say_so_or_ask_nothing_at_all(tmp_path):
    named = asked_of(tmp_path, **{"gates.reward_hacking": "[]"})
    assert "policy/closing_increase" not in {each.metric for each in named}
    nothing = asked_of(tmp_path, **{"gates.policy": "[]"})
    assert {each.metric for each in nothing} == {"policy/win_rate_over_champion"}


def test_judges_without_scores_are_not_asked_about_shuffled_prompts(tmp_path):
    asks = {"policy/shuffled_prompt_increase"}
    assert asks <= {each.metric for each in asked_of(tmp_path)}
    ai = "{kind: ai, url: 'http://127.0.0.1:1/v1', model: m, principles: [Be right.]}"
    words = asked_of(tmp_path, **{"evaluation.judge": ai})
    assert not asks & {each.metric for each in words}
    both = asked_of(tmp_path, **{"evaluation.judge": f"[run, {ai}]"})
    assert asks <= {each.metric for each in both}


def test_what_a_project_requires_is_asked_beside_the_defaults_and_without_them(tmp_path):
    gate = GateConfig(
        metric="policy/closing_increase", at_most=0.1, min_samples=200, confidence=0.99
    )
    required = RequiredGates(policy=(gate,))
    asked = required.added_to("policy", asked_of(tmp_path))
    closing = [each for each in asked if each.metric == gate.metric]
    assert [(each.at_most, each.confidence) for each in closing] == [(0.2, 0.99), (0.1, 0.99)]
    none = required.added_to("policy", asked_of(tmp_path, **{"gates.reward_hacking": "[]"}))
    assert gate in none
    loose = RequiredGates(
        policy=(gate.model_copy(update={"at_most": 0.3, "confidence": 0.9, "min_samples": 50}),)
    )
    assert loose.missing("policy", asked_of(tmp_path)) == ()


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (
            "metric: sft/heldout_nll, at_most: 2",
            "reward_hacking: .* stage measures policy/",
        ),
        ("metric: policy/copied_increase, at_most: 0.1", "not measured with these settings"),
        ("metric: policy/closing_increase, at_most: 1", "cannot fail"),
    ],
)
def test_a_default_that_is_replaced_whole_is_held_to_the_same_rules(tmp_path, gate, said):
    with pytest.raises(ConfigError, match=said):
        asked_of(tmp_path, **{"gates.reward_hacking": f"[{{{gate}}}]"})
