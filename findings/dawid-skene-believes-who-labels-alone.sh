#!/usr/bin/env bash
# crowd-kit 1.4.2: DawidSkene takes whoever labels many items alone for an expert, and lets them outvote everybody.
#
# Expected: an item with one label says nothing of who gave it: whatever their record is, that label is as likely. What is
#   known of people, and of the items that several labelled, stays as it was without such items.
# Seen: expectation-maximisation starts with that label as the truth, finds that its annotator was right on all of them,
#   and is sure of the next ones for that reason. Somebody who tosses a coin on 2,000 items that three others label as
#   well is found out (right on half). With 10,000 more items that the coin labels alone, the model believes the coin in
#   93 of 100 cases, and what it decides on the 2,000 falls from 0.78 right to 0.51: chance. The others are outvoted.
# Matters: preference data mix sources, some with several votes a pair, some with one: the larger the source with one vote,
#   the more its annotators decide about the pairs of all others, and the soft labels of its own are certainties. MACE
#   of the same library does so less. Nothing is said of it: the fit ends as usual.
# Until that changes: fit on the items with several labels alone, and give the others what that says of their annotators.
# Output seen (three people of accuracy 0.7 and a coin on 2,000 items; items that the coin labels alone):
#        0 alone: 0.782 of the shared items right, the coin taken for right in 0.487
#    1,000 alone: 0.782 of the shared items right, the coin taken for right in 0.482
#   10,000 alone: 0.506 of the shared items right, the coin believed in 0.929
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet crowd-kit==1.4.2
env/bin/python - <<'PYTHON'
import numpy as np
import pandas as pd
from crowdkit.aggregation import DawidSkene

SHARED = 2_000
draw = np.random.default_rng(1)
truth = draw.integers(0, 2, SHARED)


def labels(first, worker, given):
    return pd.DataFrame({"task": np.arange(first, first + len(given)), "worker": worker, "label": given})


people = [labels(0, worker, np.where(draw.random(SHARED) < 0.7, truth, 1 - truth)) for worker in range(3)]
coin = labels(0, 3, draw.integers(0, 2, SHARED))
found = {}
for alone in (0, 1_000, 10_000):
    more = labels(SHARED, 3, draw.integers(0, 2, alone))
    model = DawidSkene(n_iter=200)
    probability = model.fit_predict_proba(pd.concat([*people, coin, more]))
    right = float((probability.loc[: SHARED - 1].idxmax(axis=1).to_numpy() == truth).mean())
    record = float(np.diag(model.errors_.loc[3].to_numpy()).mean())
    found[alone] = right, max(record, 1 - record)  # which of the labels is called which is free
    how = f"believed in {found[alone][1]:.3f}" if alone > 1_000 else f"taken for right in {record:.3f}"
    print(f"{alone:>6,} alone: {right:.3f} of the shared items right, the coin {how}")
is_seen = found[0][0] > 0.75 and found[10_000][0] < 0.55 and found[0][1] < 0.55 and found[10_000][1] > 0.9
raise SystemExit(0 if is_seen else "the behaviour has changed")
PYTHON
