#!/usr/bin/env bash
# crowd-kit 1.4.2: BradleyTerry stops after two iterations, whatever n_iter and tol are, far from the scores it is named for.
#
# Expected: fit iterates until the scores move by less than tol, or n_iter times, and gives the maximum-likelihood scores.
# Seen: the scores of the iteration before are kept as the same array that the next one writes into, so that the second
#   iteration finds a change of exactly 0 and ends. loss_history_, where one would see it, stays empty. Two iterations are
#   nearly enough where everything was compared with everything; where comparisons form chains, systems that are not
#   neighbours hardly bear on each other, and who was compared with weak ones only stands above all.
# Matters: versions of a model are compared with the one before, and new ones with what was there: that is a chain. The
#   ranking is then mostly each system's share of wins, which the model is there to correct.
# Until that changes: give tol=0, which no change is below, and an n_iter that is large enough.
# Output seen (v1 to v8, each preferred to the one before in 600 of 1,000 votes; x, preferred to v1 in 750 of 1,000):
#   by definition:              v8 v7 v6 v5 v4 x v3 v2 v1; v8 beats v1 in 0.945
#   n_iter=100:                 x v8 v7 v3 v4 v5 v6 v2 v1; v8 beats v1 in 0.685
#   n_iter=1000000, tol=1e-12:  x v8 v7 v3 v4 v5 v6 v2 v1; v8 beats v1 in 0.685
#   n_iter=2:                   x v8 v7 v3 v4 v5 v6 v2 v1; v8 beats v1 in 0.685
#   n_iter=2000, tol=0:         v8 v7 v6 v5 v4 x v3 v2 v1; v8 beats v1 in 0.945
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet crowd-kit==1.4.2
env/bin/python - <<'PYTHON'
import math

import pandas as pd
from crowdkit.aggregation import BradleyTerry

VERSIONS = [f"v{number}" for number in range(1, 9)]
# The comparisons form a tree, so that the likelihood is largest where every pair has its own log-odds: they add up.
STEP, X = math.log(600 / 400), math.log(750 / 250)
BY_DEFINITION = {name: STEP * number for number, name in enumerate(VERSIONS)} | {"x": X}


def votes(winner, loser, wins):
    return wins * [(winner, loser, winner)] + (1_000 - wins) * [(winner, loser, loser)]


compared = [(newer, older, 600) for older, newer in zip(VERSIONS, VERSIONS[1:])] + [("x", "v1", 750)]
DATA = pd.DataFrame([vote for pair in compared for vote in votes(*pair)], columns=["left", "right", "label"])


def show(name, scores):
    order = " ".join(sorted(scores, key=scores.get, reverse=True))
    wins = 1 / (1 + math.exp(scores["v1"] - scores["v8"]))
    print(f"{name + ':':<27} {order}; v8 beats v1 in {wins:.3f}")
    return order, wins


def fitted(**settings):
    return {name: math.log(score) for name, score in BradleyTerry(**settings).fit(DATA).scores_.items()}


right = show("by definition", BY_DEFINITION)
hundred = show("n_iter=100", fitted(n_iter=100))
many = show("n_iter=1000000, tol=1e-12", fitted(n_iter=1_000_000, tol=1e-12))
two = show("n_iter=2", fitted(n_iter=2))
told = show("n_iter=2000, tol=0", fitted(n_iter=2_000, tol=0))
stops = hundred == many == two and two[0].startswith("x ") and two[1] < 0.8
iterates = told[0] == right[0] and abs(told[1] - right[1]) < 1e-3
raise SystemExit(0 if stops and iterates else "the behaviour has changed")
PYTHON
