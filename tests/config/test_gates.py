"""Gates as settings ask for them: one that cannot fail asks for nothing."""

from pathlib import Path

import pytest

from rlhf_core.config import load_config
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
