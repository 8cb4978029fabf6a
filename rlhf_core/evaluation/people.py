"""What people say of the answers that the judge compared."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.schema import AI_JUDGE, PeopleVotes, Record
from rlhf_core.statistics.resampling import Array


class OutcomeVote(Record):
    """One vote, as an outcome for the policy."""

    annotator: str
    won: float
    """1 the policy, 0 SFT, 0.5 a tie."""


class VotedPair(Record):
    """One prompt with the two answers that people saw, and their votes."""

    prompt_id: str
    policy: str
    sft: str
    votes: tuple[OutcomeVote, ...] = ()
    """None on two equal answers: they were not asked about, and are a tie."""


def people_outcomes(
    samples: Sequence[ComparedAnswer], voted: Iterable[VotedPair]
) -> tuple[Array, PeopleVotes]:
    """Return people's mean outcome of each sample, and whose votes those are.

    Where a person voted at all, AI judges count nowhere: two measures would be mixed. A vote counts
    for the very answers it was given on.

    Args:
        samples: what the judge compared.
        voted: pairs with votes; of one prompt there may be several, whose votes are joined.

    Returns:
        [n] mean of the votes on each sample, NaN where nobody voted.
    """
    rows = {_answers(row): index for index, row in enumerate(samples)}
    known: dict[int, dict[str, float]] = {}
    alike: set[int] = set()
    unmatched: set[tuple[str, str, str]] = set()
    for pair in voted:
        index = rows.get(_answers(pair))
        if index is None:
            unmatched.add(_answers(pair))
        elif pair.policy == pair.sft:
            alike.add(index)
        else:
            votes = known.setdefault(index, {})
            votes |= {vote.annotator: vote.won for vote in pair.votes}
    outcome = np.full(len(samples), np.nan)
    outcome[sorted(alike)] = 0.5
    counted = _of_people(known)
    for index, votes in counted.items():
        outcome[index] = float(np.mean(list(votes.values())))
    return outcome, PeopleVotes(
        pairs=int((~np.isnan(outcome)).sum()),
        votes=sum(map(len, counted.values())),
        by=tuple(sorted({name for votes in counted.values() for name in votes})),
        unmatched=len(unmatched),
    )


def describe_votes(people: PeopleVotes) -> str:
    """Say how many votes there are, whose they are, and which decision with votes it is."""
    who = f"{len(people.by)} annotators"
    if people.by and all(name.startswith(AI_JUDGE) for name in people.by):
        who = f"{', '.join(people.by)} and no person"
    text = f"{people.votes} votes by {who} on {people.pairs} pairs of the judged answers"
    if people.unmatched:
        text += f"; {people.unmatched} pairs are of other answers and do not count"
    if people.round > 1:
        text += (
            f"; decision {people.round} with votes on these answers, so its interval is that of "
            f"look {people.round}"
        )
    return text


def _answers(pair: ComparedAnswer | VotedPair) -> tuple[str, str, str]:
    return pair.prompt_id, pair.policy, pair.sft


def _of_people(known: Mapping[int, Mapping[str, float]]) -> dict[int, dict[str, float]]:
    """Leave AI judges out where there are people, and pairs that are then without votes."""
    names = {name for votes in known.values() for name in votes}
    only_ai = all(name.startswith(AI_JUDGE) for name in names)
    counted = {
        index: {
            name: won for name, won in votes.items() if only_ai or not name.startswith(AI_JUDGE)
        }
        for index, votes in known.items()
    }
    return {index: votes for index, votes in counted.items() if votes}
