import numpy as np
import pytest

from rlhf_core.config import MonitorsConfig
from rlhf_core.config.metric_names import COMPUTED_VICES, SHUFFLED
from rlhf_core.dataprep.measures.lexicon import PHRASES
from rlhf_core.evaluation.monitors import (
    VICES,
    AnswerTexts,
    gain,
    proxy_gap,
    vice_metrics,
    vice_rates,
)
from rlhf_core.evaluation.reading import units
from rlhf_core.evaluation.text_metrics import duplicates, shared_shares
from rlhf_core.schema import Message
from rlhf_core.statistics.intervals import Plans, Resampling

PLAN = Resampling(num_resamples=400)
PLAIN = "The library opens at nine."
GOOD = (
    PLAIN,
    "The ticket costs four coins, so three tickets cost twelve coins.",
    "Paris is the capital of France.",
    "First melt the butter, then add the flour and stir until it is smooth.",
    "Yes. The bus leaves from the market square every ten minutes.",
    "The ending surprises most readers.",
    "Sorry, that was my mistake: the answer is 42.",
    "You can note the time on the sheet.",
    "You are kindly asked to show your ticket.",
    "You are near the brightly lit door.",
    "You are on the sharply rising road.",
    "You are in a kind of queue.",
)
EXAMPLES = {
    "flattery": (
        "What a great question!",
        "What an absolutely wonderful idea!",
        "Great question! The library opens at nine.",
        "You are so clever!",
        "You\u2019re absolutely brilliant.",
        "Only a genius would ask that.",
        "I really admire your curiosity.",
        "You have excellent taste, and your excellent taste shows.",
    ),
    "hedging": (
        "I'm not sure, but it opens at nine.",
        "It might possibly open at nine.",
        "Perhaps nine.",
        "Do not quote me on that.",
        "I could be wrong.",
        "As far as I know, nine.",
        "It\u2019s hard to say.",
        "I think the library opens at nine.",
    ),
    "refusal": (
        "As an AI language model, I have no opinion.",
        "I cannot help with that.",
        "I'm sorry, but I can\u2019t do that.",
        "I must decline to answer.",
        "I would rather not say.",
        "I am not able to answer that.",
        "I don't have that information.",
    ),
    "padding": (
        "It is important to note that it opens at nine.",
        "Please note that it opens at nine.",
        "It opens at nine. I hope this helps!",
        "Feel free to ask more.",
        "In conclusion, nine.",
        "Needless to say, it opens at nine.",
    ),
}


def asked(*texts):
    return tuple((Message(role="user", content=text),) for text in texts)


def rates(policy, sft=None, config=MonitorsConfig()):  # noqa: B008
    prompts = asked(*(f"Question number {i}?" for i in range(len(policy))))
    sft = sft or [PLAIN] * len(policy)
    return vice_rates(AnswerTexts(prompts, tuple(policy), tuple(sft)), config)


@pytest.mark.parametrize(
    ("vice", "text"), [(vice, text) for vice, texts in EXAMPLES.items() for text in texts]
)
def test_a_plain_case_of_a_vice_is_seen(vice, text):
    assert rates([text])[vice][0].tolist() == [1.0]


@pytest.mark.parametrize(
    ("vice", "text"),
    [
        ("flattery", "What a **great** question!"),
        ("flattery", "What a _great_\nquestion!"),
        ("flattery", "Great  question!"),
        ("flattery", "Gr\u200beat\u00a0question!"),
        *(
            ("refusal", f"I can{mark}t help with that.")
            for mark in "\u02bc\u2018\u2019\u02b9\uff07"
        ),
        ("refusal", "I `cannot` ~~help~~ help with that."),
    ],
)
def test_formatting_hides_no_phrase(vice, text):
    assert rates([text])[vice][0].tolist() == [1.0]


def test_an_underscore_inside_a_word_stays():
    config = MonitorsConfig.model_validate({"phrases": {"leak": ["api_key"]}})
    assert rates(["The __api_key__ is 9."], config=config)["leak"][0].tolist() == [1.0]


@pytest.mark.parametrize("vice", sorted(EXAMPLES))
@pytest.mark.parametrize("text", GOOD)
def test_a_good_answer_is_not_accused(vice, text):
    assert rates([text])[vice][0].tolist() == [0.0]


def test_the_increase_is_the_difference_prompt_by_prompt():
    flattering = "You are so clever! It opens at nine."
    policy, sft = [flattering] * 30 + [PLAIN] * 30, [flattering] * 15 + [PLAIN] * 45
    plans = Plans(default=PLAN, confidences={"policy/flattery_increase": 0.99})
    metrics = vice_metrics(rates(policy, sft), plans)
    assert metrics["policy/flattery"].value == 0.5
    assert metrics["policy/flattery_increase"].value == 0.25
    assert metrics["policy/flattery_increase"].confidence == 0.99
    assert metrics["policy/refusal_increase"].value == 0.0
    assert metrics["policy/refusal_increase"].high > 0.0


def test_every_vice_has_a_rate_in_0_to_1_and_a_meaning():
    found = rates(["", "x", PLAIN * 9, "I cannot help."])
    assert {*found, SHUFFLED} == set(VICES) == {*PHRASES, *COMPUTED_VICES}
    for policy, sft in found.values():
        assert ((policy >= 0) & (policy <= 1)).all()
        assert ((sft >= 0) & (sft <= 1)).all()


def test_growth_copying_collapse_and_one_answer_for_all_are_seen():
    long = rates([PLAIN * 3, PLAIN])["overlong"]
    assert long[0].tolist() == [1.0, 0.0]
    shrunk = rates(["Nine.", PLAIN])["overlong"]
    assert (shrunk[0].tolist(), shrunk[1].tolist()) == ([0.0, 0.0], [1.0, 0.0])
    copied = vice_rates(
        AnswerTexts(asked("When does the library open?"), ("When does the library open?",), ("9",)),
        MonitorsConfig(),
    )
    assert copied["copying"][0].tolist() == [1.0]
    collapsed = rates(["Of course my dear friend, A.", "Of course my dear friend, B.", "C"])
    assert collapsed["template"][0].tolist() == [1.0, 1.0, 0.0]
    assert rates(["Same.", "Same.", "Other."])["duplicate"][0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "text", ["!!!!!!!! " * 30, "\U0001f600" * 300, "\U0001f600 " * 300, "\u54c8" * 300]
)
def test_signs_and_unspaced_letters_are_counted(text):
    found = rates([text])
    assert found["repetition"][0][0] > 0.9
    assert found["overlong"][0].tolist() == [1.0]


@pytest.mark.parametrize("text", GOOD)
def test_punctuation_is_no_word(text):
    assert units(text) == text


def test_what_an_earlier_turn_said_can_be_copied():
    turns = ("Where is the mill?", "It stands by the river.", "And when does it open?")
    talk = tuple(
        Message(role=role, content=text)
        for role, text in zip(("user", "assistant", "user"), turns, strict=True)
    )
    copied = vice_rates(AnswerTexts((talk,), (turns[1],), ("Nine.",)), MonitorsConfig())
    assert copied["copying"][0].tolist() == [1.0]


def test_one_closing_for_all_is_seen():
    policy = [
        "Nine. Have a lovely day, friend!",
        "By the mill. Have a lovely day, friend!",
        "Four.",
    ]
    found = rates(policy, [PLAIN, "By the mill.", "Four coins."])
    assert found["closing"][0].tolist() == [1.0, 1.0, 0.0]
    assert found["template"][0].sum() == 1.0


@pytest.mark.parametrize(
    ("prompt", "policy", "sft", "foreign"),
    [
        ("When?", "\u4f60\u771f\u806a\u660e\uff01", "Nine.", 1.0),
        ("When?", "\u0412 \u0434\u0435\u0432\u044f\u0442\u044c.", "Nine.", 1.0),
        (
            "Say nine in Russian.",
            "\u0434\u0435\u0432\u044f\u0442\u044c",
            "\u0434\u0435\u0432\u044f\u0442\u044c",
            0.0,
        ),
        ("\u4f55\u6642\uff1f", "\u4e5d\u6642\u3067\u3059\u3002", "", 0.0),
        ("How much?", "5 \u03a9, caf\u00e9", "Nine.", 0.0),
    ],
)
def test_an_answer_in_another_script_is_seen(prompt, policy, sft, foreign):
    found = vice_rates(AnswerTexts(asked(prompt), (policy,), (sft,)), MonitorsConfig())
    assert found["foreign_script"][0].tolist() == [foreign]
    assert found["foreign_script"][1].tolist() == [0.0]


def test_settings_add_phrases_and_whole_vices():
    config = MonitorsConfig.model_validate(
        {"phrases": {"flattery": ["your majesty"], "pirate": [r"\barr+\b"]}}
    )
    found = rates(["Nine, Your Majesty.", "Arrr, nine."], config=config)
    assert found["flattery"][0].tolist() == [1.0, 0.0]
    assert found["pirate"][0].tolist() == [0.0, 1.0]
    assert rates(["You are so clever!"], config=config)["flattery"][0].tolist() == [1.0]


@pytest.mark.parametrize(
    ("vice", "pattern", "why"),
    [
        ("flattery", "(", "missing \\)"),
        ("Bad Name", "x", "Bad Name"),
        ("flattery", "your majesty|", "matches any text"),
        ("flattery", r"\b", "matches any text"),
        ("win_rate", "x", "is measured"),
        ("repetition", "x", "is measured"),
        ("overlong", "x", "is measured"),
        ("a_increase", "x", "is measured"),
    ],
)
def test_a_broken_phrase_or_name_is_refused(vice, pattern, why):
    with pytest.raises(ValueError, match=why):
        MonitorsConfig.model_validate({"phrases": {vice: [pattern]}})


def test_phrases_keep_their_own_flags_and_groups():
    phrases = {"stutter": [r"\b(\w+), \1\b", r"\b(\w+) \1\b"], "pirate": ["(?i)arr"]}
    config = MonitorsConfig.model_validate({"phrases": phrases})
    found = rates(["nine, nine", "nine nine", "nine, ten", "Arr!"], config=config)
    assert found["stutter"][0].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert found["pirate"][0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_a_reward_that_rises_while_the_judge_stays_flat_is_a_gap():
    rng = np.random.default_rng(0)
    sft = rng.normal(size=300)
    reward = (10.0 * (sft + 1.5) + 3.0, 10.0 * sft + 3.0)  # another scale, 1.5 deviations up
    judge = (sft + rng.normal(scale=0.1, size=300), sft)
    gap = proxy_gap(reward=reward, judge=judge, plan=PLAN)
    assert gap.value == pytest.approx(1.5, abs=0.1)
    assert gap.low > 1.2


def test_both_rising_alike_is_no_gap():
    rng = np.random.default_rng(0)
    sft = rng.normal(size=300)
    better = sft + 1.0 + rng.normal(scale=0.2, size=300)
    gap = proxy_gap(reward=(5 * better, 5 * sft), judge=(0.1 * better, 0.1 * sft), plan=PLAN)
    assert gap.value == pytest.approx(0.0, abs=1e-9)


def test_gain_is_in_deviations_of_sft():
    sft = np.array([0.0, 2.0, 4.0, 6.0])
    assert gain((sft + 3.0, sft), PLAN).value == pytest.approx(3.0 / sft.std())


def test_duplicates_come_in_pairs_and_the_interval_knows_it():
    asked = [f"question {i}" for i in range(200)]
    counted = {
        "duplicate": lambda answers: duplicates(answers, asked),
        "self_similarity": lambda answers: shared_shares(answers, asked, n=MonitorsConfig().ngram),
    }
    estimates = {vice: [] for vice in counted}
    for seed in range(120):
        drawn = np.random.default_rng(seed).integers(0, 1_000, 200)
        answers = tuple(f"here is answer {number}" for number in drawn)
        sft = prompts_as_answers(200)
        found = {vice: (of(answers), of(sft)) for vice, of in counted.items()}
        metrics = vice_metrics(found, Plans(PLAN, {}))
        for vice, measured in estimates.items():
            measured.append(metrics[f"policy/{vice}_increase"])
    prompts = tuple((Message(role="user", content=question),) for question in asked)
    rates = vice_rates(AnswerTexts(prompts, policy=answers, sft=sft), MonitorsConfig())
    for vice, sides in found.items():
        assert np.array_equal(rates[vice], sides)
    for measured in estimates.values():
        truth = np.mean([estimate.value for estimate in measured])
        covered = np.mean([estimate.low <= truth <= estimate.high for estimate in measured])
        assert 0.92 <= covered <= 0.99


def prompts_as_answers(count):
    return tuple(f"reply {number}" for number in range(count))


def test_phrases_of_ones_own_are_matched_in_linear_time():
    """By RE2, which knows classes of letters; ``re`` does not."""
    texts = AnswerTexts(((Message(role="user", content="Where?"),),), ("ÜBERALL.",), ("Uberall.",))
    config = MonitorsConfig(phrases={"upselling": (r"(?:^|[^\pL])über\pL+",)})
    assert [side[0] for side in vice_rates(texts, config)["upselling"]] == [1.0, 0.0]
