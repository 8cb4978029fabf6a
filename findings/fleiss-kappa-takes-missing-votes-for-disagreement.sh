#!/usr/bin/env bash
# torchmetrics 1.9.0: where votes are missing FleissKappa takes agreement for disagreement, and says nothing.
#
# Expected: items count with as many votes as they have (the definition holds for each item's own number of raters), or
#   are refused, as statsmodels refuses them. Where everybody agrees kappa is 1, where votes are independent it is 0.
# Seen: every item is computed with the largest number of votes that any item has. Of three annotators, an item that two
#   saw and agree on counts as an agreement of 1/6, one they differ on as -1/6, and the answers' shares do not add up to 1.
# Matters: votes are missing in every annotation project. Perfect agreement is reported as 0.36 when half of the items
#   lack one vote of three, so that a gate on agreement stops sound data, and rounds with other gaps cannot be compared.
# Until that changes: give it items with all their votes only, or take Krippendorff's alpha, which is defined for gaps.
# Output seen (two answers, three annotators):
#   all votes there, all agree:           torchmetrics 1.000, by definition 1.000
#   all votes there, independent:         torchmetrics 0.000, by definition 0.000
#   half the items lack one, all agree:   torchmetrics 0.362, by definition 1.000
#   half the items lack one, independent: torchmetrics -0.149, by definition 0.000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 torchmetrics==1.9.0
env/bin/python - <<'PYTHON'
import torch
from torchmetrics.nominal import FleissKappa


def by_definition(counts):
    """Agreement of an item: the share of its pairs of votes that are equal; chance: two votes drawn from all votes."""
    votes = counts.sum(1)
    agreement = (counts * (counts - 1)).sum(1) / (votes * (votes - 1))
    chance = (counts.sum(0) / counts.sum()).square().sum()
    return float((agreement.mean() - chance) / (1 - chance))


AGREED = {3: [[3, 0], [0, 3]], 2: [[2, 0], [0, 2]]}
# Every way in which independent votes, each answer as likely as the other, can fall, once.
INDEPENDENT = {3: [[3, 0]] + 3 * [[2, 1]] + 3 * [[1, 2]] + [[0, 3]], 2: 2 * ([[2, 0]] + 2 * [[1, 1]] + [[0, 2]])}
wrong = right = 0.0
for gaps in (False, True):
    for label, votes in (("all agree:", AGREED), ("independent:", INDEPENDENT)):
        counts = torch.tensor(votes[3] + votes[2 if gaps else 3])
        found, expected = float(FleissKappa()(counts)), by_definition(counts)
        start = "half the items lack one, " if gaps else "all votes there, "
        shown = [round(value, 3) + 0.0 for value in (found, expected)]  # 0.0: no minus before a rounded 0
        print(f"{start + label:<37} torchmetrics {shown[0]:.3f}, by definition {shown[1]:.3f}")
        if gaps:
            wrong = max(wrong, abs(found - expected))
        else:
            right = max(right, abs(found - expected))
raise SystemExit(0 if right < 1e-3 and wrong > 0.5 else "the behaviour has changed")
PYTHON
