#!/usr/bin/env bash
# arena-rank 0.1.1: where a model always stands in the first column, style control gives its style back to its rating.
#
# Expected: a Bradley-Terry rating does not depend on which of two answers is written down first: with the columns
#   changed, the winner turned round and the difference of lengths negated a row says the same.
# Seen: from_pandas takes the mean away from the features (normalize_features, the default), which are differences
#   between the first answer and the second. Where both models stand in both columns the mean is near 0. Where a champion
#   is always first it is the difference of their styles itself; without it only the spread around it is controlled for,
#   and what the usual difference is worth goes to the ratings. The coefficient is right, the ratings are those without
#   control. No warning.
# Matters: evaluations against one baseline write it in one column. Their length-controlled table then repeats the other
#   one, and whoever shuffles the columns gets another winner from the same votes.
# Until that changes: divide differences by their spread, and give normalize_features=False; or change half of the rows.
# Output seen (reg=0; the terse champion is better at equal length by 0.30 in log-odds, the challenger writes twice as much;
# the same 100,000 votes each time):
#   no control:                         champion above challenger by -0.63
#   champion first:                     champion above challenger by -0.70; 0.0050 for each token
#   every second row turned round:      champion above challenger by 0.31; 0.0050 for each token
#   champion first, mean left in place: champion above challenger by 0.31; 0.0050 for each token
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

VOTES, BETTER, PER_TOKEN = 100_000, 0.3, 0.005  # log-odds: of the champion at equal length, and of each token more
UNIT = 400 / math.log(10)  # of a rating, in log-odds


def champion_first():
    draw = np.random.default_rng(0)
    longer = draw.normal(200, 100, VOTES) - draw.normal(400, 100, VOTES)
    wins = draw.random(VOTES) < 1 / (1 + np.exp(-(BETTER + PER_TOKEN * longer)))
    winner = np.where(wins, "model_a", "model_b")
    return pd.DataFrame({"model_a": "champion", "model_b": "challenger", "winner": winner, "longer": longer})


def every_second_turned_round(rows):
    turned = rows.copy()
    second = turned.index % 2 == 1
    turned.loc[second, ["model_a", "model_b"]] = rows.loc[second, ["model_b", "model_a"]].to_numpy()
    turned.loc[second, "winner"] = rows.loc[second, "winner"].map({"model_a": "model_b", "model_b": "model_a"})
    turned.loc[second, "longer"] = -rows.loc[second, "longer"]
    return turned


def show(name, model, dataset, spread=None):
    found = model.compute_ratings_and_cis(dataset)
    champion = found["competitors"].index("champion")
    apart = float(found["ratings"][champion] - found["ratings"][1 - champion]) / UNIT
    per_token = None if spread is None else float(found["coeffs"][0]) / spread
    token = "" if spread is None else f"; {per_token:.4f} for each token"
    print(f"{name + ':':<35} champion above challenger by {apart:.2f}{token}")
    return apart, per_token


def controlled(name, rows, **settings):
    dataset = ContextualPairDataset.from_pandas(rows, ["longer"], **settings)
    spread = 100.0 if settings else float(rows["longer"].std(ddof=0))
    return show(name, ContextualBradleyTerry(2, 1, reg=0.0), dataset, spread)


first = champion_first()
none = show("no control", BradleyTerry(2), PairDataset.from_pandas(first))
fixed = controlled("champion first", first)
turned = controlled("every second row turned round", every_second_turned_round(first))
scaled = first.assign(longer=first["longer"] / 100)
in_place = controlled("champion first, mean left in place", scaled, normalize_features=False)
right = all(abs(apart - BETTER) < 0.05 for apart, _ in (turned, in_place))
same = all(abs(per_token - PER_TOKEN) < 3e-4 for _, per_token in (fixed, turned, in_place))
raise SystemExit(0 if right and same and none[0] < -0.5 and fixed[0] < -0.5 else "the behaviour has changed")
PYTHON
