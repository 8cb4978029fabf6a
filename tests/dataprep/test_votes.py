"""Models of annotators: right on known answers, and compared with majority on real votes."""

import gzip
import json

import numpy as np
import pytest

from rlhf_core.dataprep.votes.against_rest import against_rest
from rlhf_core.dataprep.votes.annotators import AnnotatorFacts, annotator_facts
from rlhf_core.dataprep.votes.vote_models import MODELS, dawid_skene, majority
from rlhf_core.dataprep.votes.vote_table import CHOICES, VoteTable, decide, reliability
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Vote


def simulated(num_comparisons=600, seed=0) -> tuple[VoteTable, np.ndarray]:
    """Five good annotators, one at chance, one who always says a, one contrarian and hasty."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, num_comparisons)
    table = VoteTable()
    for number, right in enumerate(truth):
        answers = {
            **{f"good{i}": right if rng.random() < 0.85 else 1 - right for i in range(5)},
            "chance": rng.integers(0, 2),
            "always": 0,
            "contrarian": right if rng.random() < 0.25 else 1 - right,
        }
        table.add(
            number,
            [
                Vote(
                    annotator=name,
                    choice=CHOICES[answer],
                    seconds=1.0 if name == "contrarian" else float(rng.uniform(8, 20)),
                )
                for name, answer in answers.items()
            ],
        )
    return table, truth


def judged(table: VoteTable, num_comparisons: int) -> list[AnnotatorFacts]:
    rest = against_rest(table, [""] * num_comparisons, num_resamples=1_000, seed=0)
    known = reliability(table, majority(table, num_comparisons))
    return annotator_facts(table, rest, known, min_votes=20, fast_fraction=0.25)


def accuracy(probabilities: np.ndarray, truth: np.ndarray) -> float:
    beats, tied = decide(probabilities)
    return float(np.mean(np.where(tied, 0.5, (beats > 0.5) == (truth == 0))))


def test_majority_is_the_share_of_votes():
    table = VoteTable()
    votes = [
        Vote(annotator=str(i), choice=choice) for i, choice in enumerate(("a", "a", "b", "tie"))
    ]
    table.add(1, votes)
    np.testing.assert_allclose(majority(table, 2), [[0, 0, 0], [0.5, 0.25, 0.25]])


def test_who_wins_follows_from_the_posterior():
    beats, tied = decide(
        np.array([[0.6, 0.2, 0.2], [0.3, 0.3, 0.4], [0.2, 0.3, 0.5], [0.0, 0.0, 0.0]])
    )
    np.testing.assert_allclose(beats, [0.7, 0.5, 0.45, 0.5])
    assert tied.tolist() == [False, True, True, True]


@pytest.mark.parametrize("name", ["dawid_skene", "mace"])
def test_a_model_of_annotators_beats_counting_heads(name):
    table, truth = simulated()
    weighed = accuracy(MODELS[name](table, len(truth), min_votes=20), truth)
    assert weighed > accuracy(majority(table, len(truth)), truth) + 0.03


def test_reliability_ranks_the_annotators():
    table, truth = simulated()
    found = reliability(table, dawid_skene(table, len(truth), min_votes=20))
    assert min(found[f"good{i}"] for i in range(5)) > found["chance"] > found["contrarian"]


def test_careless_annotators_are_named_with_their_reason():
    table, truth = simulated()
    facts = judged(table, len(truth))
    reasons = {item.annotator: set(item.careless) for item in facts}
    assert reasons["chance"] == {"at_chance"}
    assert reasons["always"] == {"at_chance", "same_side"}
    assert "too_fast" in reasons["contrarian"]
    assert not any(reasons[f"good{i}"] for i in range(5))
    assert not facts[-1].careless
    assert {item.annotator: item.reliability for item in facts} == reliability(
        table, majority(table, len(truth))
    )


def unnamed_beside(named: int) -> VoteTable:
    """Thirty votes at chance that name nobody, and some of good people."""
    table, rng = VoteTable(), np.random.default_rng(0)
    for number in range(30):
        table.add(number, [Vote(annotator="unnamed", choice=CHOICES[rng.integers(0, 2)])])
        right = CHOICES[number % 2]
        table.add(number, [Vote(annotator=f"good{i}", choice=right) for i in range(named)])
    return table


def test_votes_without_a_name_are_nobody_to_be_called_careless():
    facts = judged(unnamed_beside(3), 30)
    [nobody] = [item for item in facts if item.annotator == "unnamed"]
    assert (nobody.num_votes, nobody.careless) == (30, ())


@pytest.mark.parametrize("name", ["dawid_skene", "mace"])
def test_a_model_of_annotators_refuses_votes_of_nobody(name):
    with pytest.raises(ConfigError, match="100% of the votes name nobody; name the annotators"):
        MODELS[name](unnamed_beside(0), 30, min_votes=20)
    assert MODELS[name](unnamed_beside(3), 30, min_votes=20)[::2, 0].min() > 0.5


def test_annotators_with_few_votes_are_not_judged():
    table, _ = simulated(num_comparisons=15)
    assert not any(item.careless for item in judged(table, 15))
    assert judged(VoteTable(), 0) == []


@pytest.fixture
def published(shared_data):
    table, gold = VoteTable(), []
    with gzip.open(shared_data / "ukp_convarg1" / "pairs.jsonl.gz", "rt") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            table.add(number, [Vote(**label) for label in row["labels"]])
            gold.append({"a": 0, "b": 1, "tie": 2, None: -1}[row["gold"]])
    return table, np.array(gold)


def test_dawid_skene_agrees_better_with_published_gold(published):
    table, gold = published
    counted, weighed = (
        MODELS[name](table, len(gold), min_votes=20) for name in ("majority", "dawid_skene")
    )
    known = gold >= 0
    assert (counted.argmax(1) == gold)[known].mean() == pytest.approx(0.881, abs=0.002)
    assert (weighed.argmax(1) == gold)[known].mean() == pytest.approx(0.917, abs=0.002)


@pytest.mark.nightly
def test_the_five_most_careless_looking_are_far_from_published_gold(published):
    table, gold = published
    facts = judged(table, len(gold))
    named = {item.annotator for item in facts[:5]}
    assert all(item.careless for item in facts[:5])
    comparison, annotator, choice = table.columns()
    names = np.array(list(table.names))
    known = gold[comparison] >= 0
    theirs = np.isin(names[annotator], list(named)) & known
    right = choice == gold[comparison]
    assert right[theirs].mean() < 0.45
    assert right[known & ~theirs].mean() > 0.65
