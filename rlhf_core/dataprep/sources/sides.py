"""Sources that publish a winner, not two sides and a vote."""

from rlhf_core.dataprep.keys import content_id, conversation_key
from rlhf_core.schema import Choice, Comparison, Conversation, Vote


def decided_comparison(
    prompt: Conversation,
    chosen: str,
    rejected: str,
    *,
    annotator: str,
    place: tuple[str, int],
    strength: float | None = None,
) -> Comparison:
    """Return a comparison with one vote for ``chosen``.

    The publisher's order says who won. So that the side cannot say it as well, the responses lie
    in the order of their ids; the comparison's id is the same whichever won.

    Args:
        prompt: the conversation answered.
        chosen: the published winner; with ``strength`` 0 it is a tie.
        rejected: the other response.
        annotator: name of the one implied vote.
        place: source name and line.
        strength: how much better, where the source says it.
    """
    key = conversation_key(prompt).hex()
    ids = {text: content_id("pair", key, text) for text in (chosen, rejected)}
    response_a, response_b = sorted((chosen, rejected), key=lambda text: ids[text])
    choice: Choice = "a" if response_a == chosen else "b"
    if strength == 0:
        choice = "tie"
    return Comparison(
        comparison_id=content_id("pair", key, response_a, response_b),
        prompt=prompt,
        response_a=response_a,
        response_b=response_b,
        votes=(Vote(annotator=annotator, choice=choice, strength=strength),),
        source=place[0],
        line=place[1],
    )
