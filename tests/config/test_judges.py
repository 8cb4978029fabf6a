"""`evaluation.judge`: what is wrong in it is named by the key that is written."""

import pytest

from rlhf_core.config import load_config
from rlhf_core.errors import ConfigError
from tests.config.test_load import MINIMAL

JUDGE = "{kind: ai, url: 'http://judge/v1', model: m, principles: [Be kind.]}"


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ("nonsense", "judge: expected run, or models:/NAME/VERSION, or a section with its kind"),
        ("[run, nonsense]", "judge.1: expected run, or models:/NAME/VERSION"),
        ("[run, 7]", "judge.1: expected run, models:/NAME/VERSION, or a section"),
        ("[[run]]", "judge.0: expected run"),
        ("[]", "judge: expected at least one judge"),
        ("{kind: ai}", "judge.url: Field required"),
        ("{kind: crowd}", "judge: expected run, .* or a list of these"),
        (f"[run, {JUDGE[:-1]}, modle: m}}]", "judge.1.modle: no such setting"),
        (
            "{kind: reward_model, model: ''}",
            "judge.model: String should have at least 1",
        ),
    ],
)
def test_a_wrong_judge_is_told_by_the_key_that_is_written(minimal, judge, says):
    with pytest.raises(ConfigError, match=f": evaluation.{says}") as refused:
        load_config(minimal, {"evaluation.judge": judge})
    assert refused.value.args[0].count("judge: expected at least") == (judge == "[]")
