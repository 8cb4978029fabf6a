"""What tokens leave out of comparisons: which side and which label it falls on."""

from collections import Counter
from dataclasses import dataclass, field

from rlhf_core.dataprep.cleaning.rules import AT_FAULT, Problem
from rlhf_core.schema import Comparison

_REASONS = ("too_long", "not_renderable")
_LEVEL = 0.01
"""Two counts that chance would part so far in fewer cases than this are uneven."""


def uneven(counts: "Counter[str] | dict[str, int]", one: str, other: str) -> bool:
    """Tell whether two counts differ by more than chance: a two-sided sign test at 0.01."""
    from scipy.stats import binomtest

    first, second = counts.get(one, 0), counts.get(other, 0)
    total = first + second
    return total > 0 and float(binomtest(first, total).pvalue) < _LEVEL


@dataclass(slots=True)
class TokenLosses:
    """Comparisons filtered out for a response that does not fit, or does not survive."""

    sides: Counter[str] = field(default_factory=Counter)
    """Whose response it was: ``a``, ``b`` or ``both``."""
    labels: Counter[str] = field(default_factory=Counter)
    """How the votes had it: ``winner``, ``loser``, ``both``, or ``undecided``."""

    def add(self, problem: Problem, item: Comparison) -> None:
        """Count a comparison, if it was for tokens and for a response that it is filtered out."""
        reason, detail = problem
        side = AT_FAULT.get(detail.partition(":")[0])
        if reason not in _REASONS or side is None:
            return
        self.sides[side] += 1
        if side == "both":
            self.labels["both"] += 1
        elif item.votes_a == item.votes_b:
            self.labels["undecided"] += 1
        else:
            won = "a" if item.votes_a > item.votes_b else "b"
            self.labels["winner" if side == won else "loser"] += 1

    def as_json(self) -> dict[str, object]:
        """Return the report's section; ``uneven`` says what falls on one side more than chance."""
        return {
            "by_side": dict(sorted(self.sides.items())),
            "by_label": dict(sorted(self.labels.items())),
            "uneven": self.describe(),
        }

    def describe(self) -> list[str]:
        """Say what falls on one side or one label more than chance would have it."""
        lines = []
        for what, counts, one, other in (
            ("label", self.labels, "winner", "loser"),
            ("side", self.sides, "a", "b"),
        ):
            if uneven(counts, one, other):
                lines.append(
                    f"rows left out for their tokens fall on one {what}: for the response of"
                    f" {one} {counts[one]}, of {other} {counts[other]}; a reward model learns from"
                    " what is left. Raise model.max_length, or leave long rows out on both sides"
                )
        return lines
