#!/usr/bin/env bash
# arena-rank 0.1.1: style control as it comes takes away a fifteenth of the style, however many votes there are.
#
# Expected: ContextualBradleyTerry's ratings are those at equal style. A regularisation of 1.0 is a prior worth a few
#   votes: it matters in hundreds of them and is nothing in a hundred thousand, as in a logistic regression.
# Seen: the penalty 0.5 * reg * coefficient**2 is added to the mean over votes, not to their sum, and reg is 1.0. A vote
#   tells at most 0.25 about a coefficient of a normalised feature, so that it is shrunk to a fifth or less of what it is,
#   the same with a thousand votes and with a hundred thousand. What is not taken away goes to the ratings. Their
#   intervals get narrow round that. No warning. The library's notebook of LMArena's style control leaves reg as it is;
#   the one of PRISM sets it to 1e-15.
# Matters: who writes longer stands above who writes better, in a table that says it is controlled for length.
# Until that changes: give reg=0, or a number divided by the votes.
# Output seen (two models; the terse one is better at equal length by 0.30 in log-odds, the other writes twice as much):
#     1,000 votes: uncontrolled -0.70; controlled -0.64 [-0.89, -0.39]; reg=0 0.30 [0.05, 0.54]
#    10,000 votes: uncontrolled -0.61; controlled -0.55 [-0.62, -0.47]; reg=0 0.29 [0.22, 0.36]
#   100,000 votes: uncontrolled -0.62; controlled -0.56 [-0.58, -0.54]; reg=0 0.29 [0.27, 0.31]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet arena-rank==0.1.1
JAX_PLATFORMS=cpu env/bin/python - <<'PYTHON'
import math

import numpy as np
import pandas as pd
from arena_rank.models.bradley_terry import BradleyTerry
from arena_rank.models.contextual_bradley_terry import ContextualBradleyTerry
from arena_rank.utils.data_utils import ContextualPairDataset, PairDataset

BETTER, PER_TOKEN = 0.3, 0.005  # log-odds: of the terse model at equal length, and of each token more
UNIT = 400 / math.log(10)  # of a rating, in log-odds
NAMES, TOKENS = np.array(["terse", "wordy"]), np.array([200, 400])


def votes(number):
    draw = np.random.default_rng(0)
    first = draw.integers(0, 2, number)
    longer = draw.normal(TOKENS[first], 100) - draw.normal(TOKENS[1 - first], 100)
    log_odds = np.where(first == 0, BETTER, -BETTER) + PER_TOKEN * longer
    wins = draw.random(number) < 1 / (1 + np.exp(-log_odds))
    winner = np.where(wins, "model_a", "model_b")
    return pd.DataFrame({"model_a": NAMES[first], "model_b": NAMES[1 - first], "winner": winner, "longer": longer})


def terse_above_wordy(model, dataset):
    found = model.compute_ratings_and_cis(dataset)
    terse = found["competitors"].index("terse")
    apart = float(found["ratings"][terse] - found["ratings"][1 - terse]) / UNIT
    # Two ratings that add up to a constant: their difference has twice the error of one.
    error = float(found["rating_upper"][terse] - found["rating_lower"][terse]) / UNIT
    return apart, apart - error, apart + error


def compare(number):
    rows = votes(number)
    plain = terse_above_wordy(BradleyTerry(2), PairDataset.from_pandas(rows))
    dataset = ContextualPairDataset.from_pandas(rows, ["longer"])
    default = terse_above_wordy(ContextualBradleyTerry(2, 1), dataset)
    free = terse_above_wordy(ContextualBradleyTerry(2, 1, reg=0.0), dataset)
    shown = ["{:.2f} [{:.2f}, {:.2f}]".format(*value) for value in (default, free)]
    print(f"{number:>7,} votes: uncontrolled {plain[0]:.2f}; controlled {shown[0]}; reg=0 {shown[1]}")
    return plain[0], default, free


def as_seen(plain, default, free):
    return plain < default[0] < -0.5 and default[2] < BETTER and free[1] < BETTER < free[2]


seen = [as_seen(*compare(number)) for number in (1_000, 10_000, 100_000)]
raise SystemExit(0 if all(seen) else "the behaviour has changed")
PYTHON
