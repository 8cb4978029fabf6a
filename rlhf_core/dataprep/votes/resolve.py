"""Votes to preferences: which response won is decided here, once."""

from rlhf_core.schema import Comparison, PreferencePair


def resolve(item: Comparison, a_beats_b: float) -> PreferencePair:
    """Return the pair, with the winner's probability as its soft label.

        agreement   = (votes for the winner + votes for a tie / 2) / all votes
        probability = max(a_beats_b, 1 - a_beats_b)

    Args:
        item: a comparison that is no tie.
        a_beats_b: probability that ``response_a`` is better, from a vote model; by plain majority
            the share of its votes.
    """
    a_won = a_beats_b > 0.5
    winner = "a" if a_won else "b"
    won = item.votes_a if a_won else item.votes_b
    num_votes = len(item.votes)
    ties = num_votes - item.votes_a - item.votes_b
    strengths = [
        vote.strength for vote in item.votes if vote.choice == winner and vote.strength is not None
    ]
    return PreferencePair(
        comparison_id=item.comparison_id,
        prompt=item.prompt,
        chosen=item.response_a if a_won else item.response_b,
        rejected=item.response_b if a_won else item.response_a,
        agreement=(won + ties / 2) / num_votes,
        probability=max(a_beats_b, 1 - a_beats_b),
        num_votes=num_votes,
        tie_fraction=ties / num_votes,
        strength=sum(strengths) / len(strengths) if strengths else None,
        source=item.source,
        group=item.group,
        tags=item.tags,
    )
