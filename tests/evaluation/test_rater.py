import pytest

from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation.rater import load_rater, rate_answers
from rlhf_core.schema import Message

PROMPT = (Message(role="user", content="When?"),)


def test_a_rater_is_found_by_module_and_function():
    rate = load_rater("rlhf_core.demo.gold:rate")
    ratings = rate_answers(rate, [PROMPT, PROMPT], ["At nine.", "You are so clever!"])
    assert ratings[0].keys() == ratings[1].keys()
    assert "score" in ratings[0]


@pytest.mark.parametrize(
    "spec", ["nowhere:rate", "rlhf_core.demo.gold:nothing", "rlhf_core.demo.gold", "json:__name__"]
)
def test_a_rater_that_is_not_there_is_told_with_the_setting(spec, monkeypatch):
    if ":" in spec and "__" not in spec:
        monkeypatch.setenv("RLHF_ALLOWED_FUNCTIONS", spec)
    with pytest.raises(ConfigError, match=r"evaluation\.rater"):
        load_rater(spec)


RATER = """
import os, pathlib
pathlib.Path(os.environ["CODE_RAN"]).touch()

def rate(prompt, answer):
    return {"score": 1.0}
"""


def test_a_function_that_the_environment_does_not_list_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "unlisted_rater.py").write_text(RATER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CODE_RAN", str(tmp_path / "ran"))
    monkeypatch.setenv("RLHF_ALLOWED_FUNCTIONS", "unlisted_rater:other, house:rate")
    with pytest.raises(ConfigError, match="set RLHF_ALLOWED_FUNCTIONS=unlisted_rater:rate") as told:
        load_rater("unlisted_rater:rate")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "ran").exists()

    monkeypatch.setenv("RLHF_ALLOWED_FUNCTIONS", "house:rate,unlisted_rater:rate")
    assert load_rater("unlisted_rater:rate")(PROMPT, "At nine.") == {"score": 1.0}
    assert (tmp_path / "ran").exists()
    load_rater("rlhf_core.demo.gold:rate")


@pytest.mark.parametrize("listed", ["house", "house:*", "*", "house:", "house:a:b"])
def test_only_single_functions_can_be_allowed(monkeypatch, listed):
    monkeypatch.setenv("RLHF_ALLOWED_FUNCTIONS", listed)
    with pytest.raises(ConfigError, match="RLHF_ALLOWED_FUNCTIONS: expected module:function"):
        load_rater("house:rate")


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([{"quality": 1.0}], "expected 'score'"),
        ([{"score": 1.0}, {"score": 1.0, "length": 2.0}], "the keys of the first answer"),
        ([{"score": float("nan")}], "not finite"),
    ],
)
def test_a_rating_that_cannot_be_used_is_refused(ratings, message):
    answers = iter(ratings)
    with pytest.raises(DataError, match=message):
        rate_answers(
            lambda prompt, text: next(answers), [PROMPT] * len(ratings), ["a"] * len(ratings)
        )
