"""The annotators' habits show in the votes as shipped, and a majority is still sound."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_core.demo.annotators import ANNOTATORS, collect_votes
from rlhf_core.demo.gold import rate
from rlhf_core.demo.reading import words_of
from rlhf_core.schema import Choice, Comparison, Message

SHIPPED = Path(__file__).parents[2] / "data" / "raw" / "comparisons.jsonl"
NAMES = [annotator.name for annotator in ANNOTATORS]

Rated = tuple[Comparison, dict[str, float], dict[str, float]]


@pytest.fixture(scope="module")
def rated() -> list[Rated]:
    rows = [Comparison.model_validate_json(line) for line in SHIPPED.read_text().splitlines()]
    return [(r, rate(r.prompt, r.response_a), rate(r.prompt, r.response_b)) for r in rows]


def preference_for(
    rated: list[Rated], annotator: str, better: Callable[[Rated], Choice | None]
) -> float:
    """Share of an annotator's decided votes for the side that ``better`` names."""
    votes = [
        vote.choice == side
        for row in rated
        if (side := better(row)) is not None
        for vote in row[0].votes
        if vote.annotator == annotator and vote.choice != "tie"
    ]
    assert len(votes) > 50
    return sum(votes) / len(votes)


def gold_side(row: Rated) -> Choice | None:
    gap = row[1]["score"] - row[2]["score"]
    return None if abs(gap) < 0.05 else "a" if gap > 0 else "b"


def flattering_side(row: Rated) -> Choice | None:
    gap = row[1]["flattery"] - row[2]["flattery"]
    return None if gap == 0 else "a" if gap > 0 else "b"


def longer_side(row: Rated) -> Choice | None:
    gap = len(words_of(row[0].response_a)) - len(words_of(row[0].response_b))
    return None if abs(gap) < 4 else "a" if gap > 0 else "b"


def majority(row: Comparison) -> Choice:
    gap = row.votes_a - row.votes_b
    return "tie" if gap == 0 else "a" if gap > 0 else "b"


def test_the_majority_agrees_with_gold_far_above_chance(rated):
    decided = [(majority(row[0]), gold_side(row)) for row in rated]
    agreed = [vote == gold for vote, gold in decided if vote != "tie" and gold is not None]
    assert 0.8 < sum(agreed) / len(agreed) < 0.97


def test_length_alone_hardly_predicts_the_majority(rated):
    longer = [
        majority(row[0]) == side
        for row in rated
        if (side := longer_side(row)) is not None and majority(row[0]) != "tie"
    ]
    assert 0.42 < sum(longer) / len(longer) < 0.58


def test_dot_loves_flattery_and_nobody_else_does(rated):
    liking = {name: preference_for(rated, name, flattering_side) for name in NAMES}
    assert liking["dot"] > 0.7
    assert max(value for name, value in liking.items() if name != "dot") < 0.6


def test_cleo_loves_length_most(rated):
    liking = {name: preference_for(rated, name, longer_side) for name in NAMES}
    assert max(liking, key=lambda name: liking[name]) == "cleo"
    assert liking["cleo"] > liking["ada"] + 0.2


def test_eli_is_careless_and_quick(rated):
    soundness = {name: preference_for(rated, name, gold_side) for name in NAMES}
    assert soundness["ada"] > 0.9 > 0.8 > soundness["eli"]
    seconds = {
        name: sum(
            times := [v.seconds for row in rated for v in row[0].votes if v.annotator == name]
        )
        / len(times)
        for name in NAMES
    }
    assert seconds["eli"] < min(value for name, value in seconds.items() if name != "eli")


def test_ties_happen_but_rarely(rated):
    ties = sum(majority(row[0]) == "tie" for row in rated) / len(rated)
    assert 0.02 < ties < 0.15


def test_the_same_seed_gives_the_same_votes():
    prompt = (Message(role="user", content="museum price"),)
    pair = ("3 crowns.", "Gladly! A ticket to the museum costs 3 crowns.")
    votes = [collect_votes(random.Random(5), prompt, *pair) for _ in range(2)]
    assert votes[0] == votes[1]
