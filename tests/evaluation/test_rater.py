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
def test_a_rater_that_is_not_there_is_told_with_the_setting(spec):
    with pytest.raises(ConfigError, match=r"evaluation\.rater"):
        load_rater(spec)


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
