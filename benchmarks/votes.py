"""Which model of votes is right how often, and as sure as it is right.

    .venv/bin/python benchmarks/votes.py
    .venv/bin/python benchmarks/votes.py ../shared/data/ukp_convarg1/pairs.jsonl.gz

The first simulates crowds whose members have few or many votes. The second compares with published
gold, overall and by topic. Rows are ``{topic, gold, labels: [{annotator, choice}]}``; a row without
gold votes along and is not scored. Every model sees all votes and no gold.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np

from rlhf_core.dataprep.votes.against_rest import against_rest
from rlhf_core.dataprep.votes.agreement import alpha_estimate
from rlhf_core.dataprep.votes.annotators import annotator_facts
from rlhf_core.dataprep.votes.vote_models import MODELS, decided_by_majority
from rlhf_core.dataprep.votes.vote_table import CHOICES, VoteTable, decide
from rlhf_core.schema import Vote

NUM_RESAMPLES = 2_000
MIN_VOTES = 20
"""``data.votes.min_votes`` at its default."""


def read(path: Path) -> tuple[VoteTable, np.ndarray, np.ndarray]:
    """Return the votes, [N] gold as a place in ``CHOICES`` or -1, and [N] topics."""
    table, gold, topics = VoteTable(), [], []
    with gzip.open(path, "rt") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            table.add(number, [Vote(**label) for label in row["labels"]])
            gold.append(CHOICES.index(row["gold"]) if row["gold"] else -1)
            topics.append(row["topic"])
    return table, np.array(gold), np.array(topics)


def difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Return the mean difference of two paired 0/1 columns with its 95% bootstrap interval."""
    gap = first.astype(float) - second
    draws = np.random.default_rng(0).integers(0, len(gap), (NUM_RESAMPLES, len(gap)))
    low, high = np.quantile(gap[draws].mean(axis=1), [0.025, 0.975])
    return gap.mean(), low, high


def print_careless(table: VoteTable, gold: np.ndarray) -> None:
    """Print the annotators who look careless, and how often they agree with gold."""
    known = gold >= 0
    print("\n| careless-looking | votes | agrees with gold | why |\n|---|---|---|---|")
    comparison, annotator, choice = table.columns()
    correct = choice == gold[comparison]
    rest = against_rest(table, [""] * len(gold), num_resamples=1_000, seed=0)
    facts = annotator_facts(table, rest, {}, min_votes=20, fast_fraction=0.25)
    for found in facts[:5]:
        rows = (annotator == table.names[found.annotator]) & known[comparison]
        why = ", ".join(found.careless)
        print(f"| {found.annotator} | {found.num_votes} | {correct[rows].mean():.2f} | {why} |")
    named = [table.names[found.annotator] for found in facts if found.careless]
    shares = [correct[(annotator == person) & known[comparison]].mean() for person in named]
    theirs = correct[np.isin(annotator, named) & known[comparison]].mean()
    print(f"\nall {len(named)} careless-looking: {theirs:.2f}, at most {max(shares):.2f}")
    print(f"everybody: {correct[known[comparison]].mean():.2f}")


def crowd(votes_each: int, seed: int) -> tuple[VoteTable, VoteTable, np.ndarray, np.ndarray]:
    """Simulate 2,000 pairs of three votes each, by people between chance and always right.

    Returns:
        The votes; the same with half of the pairs written the other way round, in another order;
        [N] whether a is better; and [N] the place of each pair in the other order.
    """
    rng = np.random.default_rng(seed)
    size = 2_000
    skill = 0.5 + 0.5 * rng.beta(2, 2, size * 3 // votes_each)
    who = rng.permutation(np.repeat(np.arange(len(skill)), votes_each))[: size * 3].reshape(-1, 3)
    a_better = rng.random(size) < 0.5
    says_a = (rng.random(who.shape) < skill[who]) == a_better[:, None]
    swapped, order = rng.random(size) < 0.5, rng.permutation(size)
    tables = VoteTable(), VoteTable()
    for table, rows, swap in ((tables[0], np.arange(size), False), (tables[1], order, True)):
        for place, row in enumerate(rows.tolist()):
            answers = says_a[row] != (swap and swapped[row])
            votes = zip(who[row].tolist(), answers.tolist(), strict=True)
            table.add(
                place,
                [Vote(annotator=f"p{p}", choice="a" if a else "b") for p, a in dict(votes).items()],
            )
    return *tables, a_better, np.where(swapped, -1, 1) * (np.argsort(order) + 1)


def simulate() -> None:
    """Print wrong winners beside the share of them that the soft labels predict, and what flips."""
    print("| votes a person | model | wrong winners | claimed | flipped by order and sides |")
    print("|---|---|---|---|---|")
    for votes_each in (5, 10, 20, 60, 200):
        for name, model in MODELS.items():
            wrong, claimed, flipped = [], [], []
            for seed in range(5):
                table, other, a_better, places = crowd(votes_each, seed)
                size = len(a_better)
                beats, tied = decide(model(table, size, min_votes=MIN_VOTES))
                again, _ = decide(model(other, size, min_votes=MIN_VOTES))
                again = again[np.abs(places) - 1]
                again = np.where(places < 0, 1 - again, again)
                wrong += ((beats > 0.5) != a_better)[~tied].tolist()
                claimed += np.minimum(beats, 1 - beats)[~tied].tolist()
                flipped += (again != beats)[~tied].tolist()
            print(
                f"| {votes_each} | {name} | {np.mean(wrong):.3f} | {np.mean(claimed):.3f}"
                f" | {np.mean(flipped):.3f} |"
            )


def main() -> None:
    """Simulate, or fit every model to a file; print the tables of docs/data.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, nargs="?")
    path = parser.parse_args().pairs
    if path is None:
        simulate()
    else:
        compare_with_gold(path)


def compare_with_gold(path: Path) -> None:
    """Print how often every model agrees with gold, and who looks careless."""
    table, gold, topics = read(path)
    known = gold >= 0
    alpha = alpha_estimate(table.counts(len(gold)), num_resamples=1_000, seed=0)
    print(f"{len(gold):,} pairs, {len(table.choice):,} votes, {known.sum():,} with gold")
    print(f"Krippendorff's alpha {alpha.value:.3f} [{alpha.low:.3f}, {alpha.high:.3f}]")
    print(f"by heads alone: {decided_by_majority(table, len(gold), MIN_VOTES):,}\n")
    right, seconds = {}, {}
    for name, model in MODELS.items():
        start = time.perf_counter()
        right[name] = model(table, len(gold), min_votes=MIN_VOTES).argmax(axis=1) == gold
        seconds[name] = time.perf_counter() - start
    print("| model | agrees with gold | less majority | where gold is no tie | seconds |")
    print("|---|---|---|---|---|")
    decided = known & (gold < 2)
    for name, column in right.items():
        gap = difference(column[known], right["majority"][known])
        shown = "" if name == "majority" else f"{gap[0]:+.3f} [{gap[1]:+.3f}, {gap[2]:+.3f}]"
        print(
            f"| {name} | {column[known].mean():.3f} | {shown} | {column[decided].mean():.3f}"
            f" | {seconds[name]:.1f} |"
        )
    print(f"\n| topic | pairs | {' | '.join(right)} |\n|---|---|{'---|' * len(right)}")
    for topic in sorted(set(topics)):
        rows = known & (topics == topic)
        shares = [column[rows].mean() for column in right.values()]
        cells = (f"**{s:.3f}**" if s == max(shares) else f"{s:.3f}" for s in shares)
        print(f"| {topic} | {rows.sum()} | {' | '.join(cells)} |")
    print_careless(table, gold)


if __name__ == "__main__":
    main()
