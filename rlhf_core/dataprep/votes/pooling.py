"""Rows on one and the same pair: new votes are pooled, repeats and contradictions filtered out."""

from collections.abc import Sequence

from rlhf_core.dataprep.keys import Key
from rlhf_core.dataprep.ledger import Entry, Ledger
from rlhf_core.dataprep.sources.rows import UNNAMED
from rlhf_core.dataprep.votes.read_again import rows_read_again
from rlhf_core.dataprep.votes.vote_table import CHOICES, VoteTable
from rlhf_core.schema import Choice, Vote

Ballot = tuple[Vote, ...]
_OTHER_SIDE: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie"}


def votes_once(votes: Ballot) -> Ballot:
    """Return the votes on a comparison without those whose person gave the same answer before.

    Votes without a name are different people's and all stay.
    """
    if len({(vote.annotator, vote.choice) for vote in votes}) == len(votes):
        return votes
    return tuple(_fresh(votes, set()))


def pool_votes(entries: Ledger, table: VoteTable) -> dict[int, Ballot]:
    """Give all votes on a pair to its first row; the rows after it are filtered out.

    A row that brings votes of people who had not voted so on this pair is ``votes_pooled``; one
    that says again what the same people said, or that a file read twice brought again, is an
    ``exact_duplicate``. Rows that contradict each other, for the same person chose the other side
    and so another response won, all go as ``conflicting_labels``. The order of the rows does not
    change the votes of a pair.

    Args:
        entries: all comparisons; those already filtered out take no part.
        table: their votes; the pooled ones are renumbered to the first row, repeats taken out.

    Returns:
        Row number to all votes on it, for rows that got some; sides as that row has them.
    """
    groups = _rows_of_same_pairs(entries)
    ballots = table.ballots([row for rows in groups for row in rows])
    for head, *others in groups:
        for row in others:
            ballots[row] = _as_in(entries[head], entries[row], ballots[row])
    again = rows_read_again(entries, table, groups, ballots)
    pooled: dict[int, Ballot] = {}
    spent: list[int] = []
    for head, *others in groups:
        rows = [head, *others]
        sides = [() if row in again else ballots[row] for row in rows]
        if _contradict(sides):
            for row in rows:
                entries.filter_out(row, "conflicting_labels", f"with {entries[head].place}")
            continue
        votes = _gather(entries, rows, sides)
        spent += others
        if votes != sides[0]:
            pooled[head] = votes
            spent.append(head)
    table.drop(spent)
    for row, votes in pooled.items():
        table.add(row, votes)
    return pooled


def _rows_of_same_pairs(entries: Ledger) -> list[list[int]]:
    """Rows that stay and whose pair another row has as well, by pair."""
    first: dict[Key, int] = {}
    groups: dict[int, list[int]] = {}
    for row in entries.duplicated_pairs():
        head = first.setdefault(entries.pair(row), row)
        if head != row:
            groups.setdefault(head, [head]).append(row)
    return list(groups.values())


def _as_in(head: Entry, entry: Entry, ballot: Ballot) -> Ballot:
    """Votes with a and b as the first row has them."""
    if head.a_first == entry.a_first:
        return ballot
    return tuple(vote.model_copy(update={"choice": _OTHER_SIDE[vote.choice]}) for vote in ballot)


def _winner(ballot: Ballot) -> Choice:
    """By majority, as ``votes.decide`` has it."""
    a, b, tie = (sum(vote.choice == side for vote in ballot) for side in CHOICES)
    return "tie" if a == b or tie > max(a, b) else "a" if a > b else "b"


def _contradict(ballots: Sequence[Ballot]) -> bool:
    """Tell whether somebody is on the winning side of two rows that other responses won."""
    won_with: dict[str, set[Choice]] = {}
    for ballot in ballots:
        winner = _winner(ballot)
        for vote in ballot:
            if vote.annotator != UNNAMED and vote.choice == winner != "tie":
                won_with.setdefault(vote.annotator, set()).add(winner)
    return any(len(winners) > 1 for winners in won_with.values())


def _gather(entries: Ledger, rows: Sequence[int], ballots: Sequence[Ballot]) -> Ballot:
    """All votes, each person's answer once; every row but the first learns what became of it."""
    known: set[tuple[str, Choice]] = set()
    votes = _fresh(ballots[0], known)
    place = entries[rows[0]].place
    for row, ballot in zip(rows[1:], ballots[1:], strict=True):
        fresh = _fresh(ballot, known)
        votes += fresh
        if fresh:
            entries.filter_out(row, "votes_pooled", f"into {place}")
        else:
            entries.filter_out(row, "exact_duplicate", f"of {place}")
    return tuple(votes)


def _fresh(votes: Ballot, known: set[tuple[str, Choice]]) -> list[Vote]:
    """Votes that nobody in ``known`` gave; they are known from then on."""
    fresh = []
    for vote in votes:
        answer = vote.annotator, vote.choice
        if vote.annotator == UNNAMED or answer not in known:
            fresh.append(vote)
            known.add(answer)
    return fresh
