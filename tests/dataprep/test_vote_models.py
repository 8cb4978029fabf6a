"""Models of annotators: what they must not depend on, and how sure they may be."""

import numpy as np
import pytest

from rlhf_core.dataprep.votes.vote_models import (
    MODELS,
    dawid_skene,
    decided_by_majority,
    mace,
    majority,
)
from rlhf_core.dataprep.votes.vote_table import CHOICES, VoteTable, decide
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Vote

MODELS_OF_ANNOTATORS = ("dawid_skene", "mace")
OTHER = {"a": "b", "b": "a", "tie": "tie"}
Ballots = list[list[tuple[str, str]]]


def crowd(num_pairs: int, votes_each: int, *, ties=0.1, seed=0) -> tuple[Ballots, np.ndarray]:
    """Three votes a pair, of people between chance and always right."""
    rng = np.random.default_rng(seed)
    people = num_pairs * 3 // votes_each
    skill = 0.5 + 0.5 * rng.beta(2, 2, people)
    slots = rng.permutation(np.repeat(np.arange(people), votes_each))[: num_pairs * 3]
    truth = rng.integers(0, 2, num_pairs)
    ballots = []
    for right, who in zip(truth, slots.reshape(num_pairs, 3), strict=True):
        answers = []
        for person in dict.fromkeys(who.tolist()):
            side = right if rng.random() < skill[person] else 1 - right
            answers.append((f"p{person}", "tie" if rng.random() < ties else CHOICES[side]))
        ballots.append(answers)
    return ballots, truth


def table_of(ballots: Ballots) -> VoteTable:
    table = VoteTable()
    for number, answers in enumerate(ballots):
        table.add(number, [Vote(annotator=name, choice=choice) for name, choice in answers])
    return table


def fitted(name: str, ballots: Ballots, min_votes=20) -> np.ndarray:
    return MODELS[name](table_of(ballots), len(ballots), min_votes=min_votes)


@pytest.mark.parametrize("name", MODELS_OF_ANNOTATORS)
def test_the_order_of_rows_and_of_votes_changes_no_bit(name):
    ballots, _ = crowd(300, 30)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(ballots))
    shuffled = [[ballots[row][i] for i in rng.permutation(len(ballots[row]))] for row in order]
    np.testing.assert_array_equal(fitted(name, shuffled), fitted(name, ballots)[order])


@pytest.mark.parametrize("name", MODELS_OF_ANNOTATORS)
@pytest.mark.parametrize("votes_each", [5, 30])
def test_which_side_was_called_a_changes_no_bit(name, votes_each):
    ballots, _ = crowd(300, votes_each)
    swap = np.random.default_rng(2).random(len(ballots)) < 0.5
    other = [
        [(who, OTHER[choice]) for who, choice in answers] if is_other else answers
        for answers, is_other in zip(ballots, swap, strict=True)
    ]
    as_is, turned = fitted(name, ballots), fitted(name, other)
    np.testing.assert_array_equal(turned[~swap], as_is[~swap])
    np.testing.assert_array_equal(turned[swap], as_is[swap][:, [1, 0, 2]])
    (beats, tied), (other_beats, other_tied) = decide(as_is), decide(turned)
    np.testing.assert_array_equal(tied, other_tied)
    np.testing.assert_array_equal(
        np.maximum(beats, 1 - beats), np.maximum(other_beats, 1 - other_beats)
    )


@pytest.mark.parametrize("name", MODELS_OF_ANNOTATORS)
def test_where_everybody_has_few_votes_heads_decide(name):
    ballots, _ = crowd(400, 5)
    table = table_of(ballots)
    assert decided_by_majority(table, len(ballots), 20) == len(ballots)
    beats, tied = decide(fitted(name, ballots))
    by_heads, tied_by_majority = decide(majority(table, len(ballots)))
    np.testing.assert_array_equal(tied, tied_by_majority)
    np.testing.assert_array_equal((beats > 0.5)[~tied], (by_heads > 0.5)[~tied])


def test_one_person_with_a_record_is_enough_for_the_model_to_decide():
    ballots, _ = crowd(400, 5)
    known = [
        [*answers, ("regular", "a")] if row < 20 else answers for row, answers in enumerate(ballots)
    ]
    assert decided_by_majority(table_of(known), len(known), 20) == len(known) - 20


@pytest.mark.parametrize("votes_each", [5, 20, 60])
def test_dawid_skene_is_as_sure_as_it_is_right(votes_each):
    wrong, claimed = [], []
    for seed in range(4):
        ballots, truth = crowd(1_000, votes_each, ties=0.0, seed=seed)
        beats, tied = decide(fitted("dawid_skene", ballots))
        wrong += ((beats > 0.5) != (truth == 0))[~tied].tolist()
        claimed += np.minimum(beats, 1 - beats)[~tied].tolist()
    assert np.mean(claimed) == pytest.approx(np.mean(wrong), abs=0.03)


def hits_and_misses(ballots: Ballots, posterior: list[dict[str, float]]) -> dict:
    """Expected answers of each person: right sides, ties of sides, ties of ties; and their rest."""
    counts = {who: np.zeros((3, 2)) for answers in ballots for who, _ in answers}
    for answers, mass in zip(ballots, posterior, strict=True):
        for who, choice in answers if len(answers) > 1 else ():
            sides = mass["a"] + mass["b"]
            if choice == "tie":
                counts[who] += [[0, 0], [sides, 0], [mass["tie"], 0]]
            else:
                right, wrong = mass[choice], mass[OTHER[choice]]
                counts[who] += [[right, wrong], [0, sides], [0, mass["tie"]]]
    return counts


def chance_of(choice: str, truth: str, rates: np.ndarray) -> float:
    right, tie_of_side, tie_of_tie = rates
    if truth == "tie":
        return tie_of_tie if choice == "tie" else (1 - tie_of_tie) / 2
    if choice == "tie":
        return tie_of_side
    return (1 - tie_of_side) * (right if choice == truth else 1 - right)


def by_definition(ballots: Ballots, steps: int) -> np.ndarray:
    """The equations of ``dawid_skene``, person by person and vote by vote."""
    share = np.mean([choice == "tie" for answers in ballots for _, choice in answers])
    prior = {"a": (1 - share) / 2, "b": (1 - share) / 2, "tie": share}
    posterior = [
        {t: sum(choice == t for _, choice in answers) / len(answers) for t in CHOICES}
        for answers in ballots
    ]
    for _ in range(steps):
        counts = hits_and_misses(ballots, posterior)
        total = sum(counts.values())
        mean = (total[:, 0] + 1) / (total.sum(axis=1) + 2)
        rates = {
            who: (own[:, 0] + 20 * mean) / (own.sum(axis=1) + 20) for who, own in counts.items()
        }
        posterior = []
        for answers in ballots:
            mass = {
                t: prior[t] * np.prod([chance_of(choice, t, rates[who]) for who, choice in answers])
                for t in CHOICES
            }
            posterior.append({t: mass[t] / sum(mass.values()) for t in CHOICES})
    return np.array([[mass[t] for t in CHOICES] for mass in posterior])


def test_dawid_skene_is_its_definition():
    ballots, _ = crowd(60, 12, ties=0.3, seed=5)
    found = dawid_skene(table_of(ballots), len(ballots), min_votes=1)
    np.testing.assert_allclose(found, by_definition(ballots, 500), atol=1e-5)


def test_somebody_who_knows_outweighs_two_who_guess():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 200)
    guesses = rng.integers(0, 2, (200, 2))
    ballots = [
        [("expert", CHOICES[right]), ("friend", CHOICES[right])]
        + [(f"guesser{i}", CHOICES[guess]) for i, guess in enumerate(row)]
        for right, row in zip(truth, guesses, strict=True)
    ]
    ballots = [
        answers[:1] + answers[2:] if row >= 100 else answers for row, answers in enumerate(ballots)
    ]
    for model in (dawid_skene, mace):
        beats, tied = decide(model(table_of(ballots), 200, min_votes=20))
        assert (((beats > 0.5) == (truth == 0)) & ~tied)[100:].mean() > 0.95


@pytest.mark.parametrize("name", MODELS_OF_ANNOTATORS)
@pytest.mark.parametrize("lone", [0, 1_000, 20_000])
def test_votes_that_stand_alone_make_nobody_surer(name, lone):
    """Three people are right in 7 of 10 cases; a fourth, alone on other pairs, tosses a coin."""
    rng = np.random.default_rng(4)
    right = rng.random((1_000, 3)) < 0.7
    shared = [[(f"p{i}", "a" if one else "b") for i, one in enumerate(row)] for row in right]
    coins = [[("alone", CHOICES[side])] for side in rng.integers(0, 2, lone)]
    found = fitted(name, shared + coins)
    np.testing.assert_allclose(found[: len(shared)], fitted(name, shared), atol=1e-6)
    beats, tied = decide(found[len(shared) :])
    assert not tied.any()
    assert (np.maximum(beats, 1 - beats) < 0.9).all()
    said = np.array([answers[0][1] == "a" for answers in coins], dtype=bool)
    np.testing.assert_array_equal(beats > 0.5, said)


@pytest.mark.parametrize("name", MODELS_OF_ANNOTATORS)
def test_comparisons_with_one_vote_each_tell_nothing_of_anybody(name):
    ballots = [[(f"p{row % 5}", "a")] for row in range(100)]
    with pytest.raises(ConfigError, match="here each has one; use majority"):
        fitted(name, ballots)
    assert decided_by_majority(table_of(ballots), len(ballots), 20) == len(ballots)
