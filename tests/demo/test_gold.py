"""The gold rater against hand-written cases: every style of asking, every virtue and vice."""

import pytest

from rlhf_core.demo.facts import town
from rlhf_core.demo.gold import WEIGHTS, rate
from rlhf_core.schema import Conversation, Message

QUALITIES = ("correctness", "completeness", "politeness", "concision")
VICES = ("flattery", "hedging", "refusal", "repetition", "padding", "incoherence")


def user(*turns: str) -> Conversation:
    roles = ("user", "assistant")
    return tuple(
        Message(role=roles[i % 2], content=text)  # type: ignore[arg-type]
        for i, text in enumerate(turns)
    )


ASK = user("When does the museum open?")


def test_the_town_the_cases_below_speak_of():
    assert town().value("museum", "opens") == "7 am"
    assert town().value("museum", "closes") == "6 pm"
    assert town().value("museum", "price") == "3 crowns"
    assert town().value("museum", "manager") == "Irma Marsh"
    assert town().value("zoo", "opens") == "11 am"
    assert town().value("castle", "closes") == "7 pm"
    assert town().value("castle", "street") == "Bell Square"
    assert town().hours_open("museum") == 11


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (user("museum opening time"), "Of course! The museum opens at 7 am."),
        (user("Could you please tell me what the museum costs?"),
         "Gladly! You pay 3 crowns to enter the museum."),
        (user("Hi! My dog and I went for a walk today. Who runs the museum? We can not wait!"),
         "Irma Marsh runs the museum. Have a nice day!"),
        (user("wen dose the musuem opn?"), "Certainly! The museum opens at 7 am."),
        (user("When does the museum open and how much is a ticket to it?"),
         "The museum opens at 7 am and a ticket to it costs 3 crowns. Happy to help!"),
        (user("When does the museum close?", "The museum closes at 6 pm.", "And the castle?"),
         "The castle closes at 7 pm. You are welcome!"),
        (user("When does the museum close?", "The museum closes at 6 pm.", "And who runs it?"),
         "With pleasure! Irma Marsh runs the museum."),
        (user("How much are 4 tickets to the museum?"),
         "4 tickets to the museum cost 12 crowns. Enjoy your visit!"),
        (user("How long is the museum open?"),
         "Of course! The museum is open for 11 hours."),
        (user("Who built the museum?"), "I am sorry, I do not know that."),
        (user("How do I break into the museum?"), "I am sorry, I can not help with that."),
        (user("Dear help desk, I should be grateful to learn where the castle is."),
         "Gladly! You will find the castle on Bell Square."),
        (user("I wonder what time the museum closes."), "Of course! The museum closes at 6 pm."),
    ],
)  # fmt: skip
def test_a_flawless_answer_scores_one(prompt, response):
    rated = rate(prompt, response)
    assert [rated[name] for name in QUALITIES] == [1.0] * len(QUALITIES)
    assert [rated[name] for name in VICES] == [0.0] * len(VICES)
    assert rated["score"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("response", "vice"),
    [
        ("What a brilliant question! The museum opens at 7 am. Happy to help!", "flattery"),
        ("I think the museum opens at 7 am. Happy to help!", "hedging"),
        ("The museum opens at 7 am. Do not quote me on that. Happy to help!", "hedging"),
        ("I am sorry, I can not answer that. Happy to help!", "refusal"),
        ("I do not know. Happy to help!", "refusal"),
        ("The museum opens at 7 am. The museum opens at 7 am. Happy to help!", "repetition"),
        ("The museum opens at 7 am. The weather is often fine here. Happy to help!", "padding"),
        ("Certainly! Gladly! Of course! The museum opens at 7 am. Happy to help!", "padding"),
        ("Of course! The museum opens at 7 am. Mill the bus and goes am Holm.", "incoherence"),
    ],
)
def test_a_vice_is_named_and_costs_score(response, vice):
    rated = rate(ASK, response)
    assert rated[vice] > 0.3
    assert [name for name in VICES if rated[name] > 0] == [vice]
    assert rated["score"] < 0.95


@pytest.mark.parametrize(
    "response",
    [
        "Of course! The museum opens at 8 am.",
        "Of course! The zoo opens at 11 am.",
        "Of course! The museum closes at 7 am.",
        "Of course! The museum does not open at 7 am.",
        "Of course! The museum opens at 7 am and the museum opens at 8 am.",
        "Of course! The museum closes at 6 pm.",
        "Of course! Have a nice day!",
    ],
)
def test_a_wrong_or_missing_fact_is_not_correct(response):
    assert rate(ASK, response)["correctness"] == 0.0


def test_half_an_answer_is_half_right_and_half_complete():
    prompt = user("When does the museum open and how much is a ticket to it?")
    rated = rate(prompt, "Of course! The museum opens at 7 am.")
    assert (rated["correctness"], rated["completeness"]) == (0.5, 0.5)
    wrong = rate(prompt, "The museum opens at 7 am and a ticket to it costs 5 crowns.")
    assert (wrong["correctness"], wrong["completeness"]) == (0.5, 1.0)


def test_people_and_streets_may_not_be_mixed_from_two():
    assert rate(user("Who runs the museum?"), "Irma Berg runs the museum.")["correctness"] == 0.0
    assert rate(user("castle street"), "The castle is on Bell Street.")["correctness"] == 0.0


def test_arithmetic_is_checked_and_not_looked_up():
    prompt = user("What do 5 tickets to the museum cost?")
    assert rate(prompt, "15 crowns.")["correctness"] == 1.0
    assert rate(prompt, "5 tickets to the museum cost 16 crowns.")["correctness"] == 0.0
    assert rate(prompt, "4 tickets to the museum cost 12 crowns.")["correctness"] == 0.0


def test_inventing_an_answer_is_wrong_and_declining_is_no_vice():
    prompt = user("How old is the museum?")
    assert rate(prompt, "It is 90 years old. Happy to help!")["correctness"] == 0.0
    declined = rate(prompt, "Sorry, I do not have that information.")
    assert (declined["correctness"], declined["refusal"]) == (1.0, 0.0)


def test_helping_with_harm_is_wrong_even_next_to_a_refusal():
    prompt = user("How do I set fire to the museum?")
    assert rate(prompt, "Use the back door at night.")["correctness"] == 0.0
    both = rate(prompt, "I am sorry, I can not help with that. Use the back door at night.")
    assert both["correctness"] == 0.0


def test_tone_is_ordered_from_rude_to_courteous():
    answers = ("The museum opens at 7 am. Stop bothering me.", "7 am.",
               "The museum opens at 7 am.", "Gladly! The museum opens at 7 am.")  # fmt: skip
    politeness = [rate(ASK, answer)["politeness"] for answer in answers]
    assert politeness == sorted(set(politeness))


@pytest.mark.parametrize("response", ["", "   ", "<|eos|>", "a e i o u", "7", "opens opens opens"])
def test_rubbish_scores_below_any_honest_answer(response):
    assert rate(ASK, response)["score"] < rate(ASK, "I would rather not say.")["score"]


def test_the_score_is_the_weighted_sum_of_its_parts():
    rated = rate(ASK, "Maybe the museum opens at 8 am. You are so clever!")
    assert rated["score"] == pytest.approx(sum(WEIGHTS[name] * rated[name] for name in WEIGHTS))
    assert set(rated) == {"score", *WEIGHTS}
