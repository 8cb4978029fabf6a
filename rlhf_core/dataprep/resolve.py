"""Which side of a comparison won: decided here once, from then on there are chosen and rejected."""

from typing import Any

from rlhf_core.schema import PreferencePair

Fields = dict[str, Any]
"""Of a comparison, as its JSON has them: it was checked when it was read."""


def resolve(item: Fields, a_beats_b: float) -> PreferencePair:
    """Return the pair, with the winner's probability as its soft label.

        agreement   = (votes for the winner + votes for a tie / 2) / all votes
        probability = max(a_beats_b, 1 - a_beats_b)

    Args:
        item: a comparison that is no tie.
        a_beats_b: probability that ``response_a`` is better, from a vote model; by plain majority
            the share of its votes.
    """
    winner, loser = "ab" if a_beats_b > 0.5 else "ba"
    choices = [vote["choice"] for vote in item["votes"]]
    num_votes, ties = len(choices), choices.count("tie")
    strengths = [
        vote["strength"]
        for vote in item["votes"]
        if vote["choice"] == winner and vote["strength"] is not None
    ]
    return PreferencePair(
        comparison_id=item["comparison_id"],
        prompt=item["prompt"],
        chosen=item[f"response_{winner}"],
        rejected=item[f"response_{loser}"],
        agreement=(choices.count(winner) + ties / 2) / num_votes,
        probability=max(a_beats_b, 1 - a_beats_b),
        num_votes=num_votes,
        tie_fraction=ties / num_votes,
        strength=sum(strengths) / len(strengths) if strengths else None,
        source=item["source"],
        group=item["group"],
        tags=item.get("tags", {}),
    )
