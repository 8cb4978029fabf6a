#!/usr/bin/env bash
# alpaca_eval 0.6.6: lc_standard_error of a length-controlled win rate is a tenth of its error, and 0 with the minimal formula.
#
# Expected: lc_standard_error stands beside standard_error, that of the plain win rate, and says how far another round of
#   the same evaluation would move the length-controlled one: somewhat farther, since the length's effect is estimated too.
# Seen: it is the spread over instructions of what the fitted regression predicts for them, divided by the root of their
#   number. What judges said enters through the fit alone: the error counts how hard instructions differ from each other,
#   and nothing of the votes, of the coefficients' errors, or of how many there were. Where the formula has no
#   difficulty (length_controlled_minimal) every prediction is the same, and the error is 0. No warning.
# Matters: on AlpacaEval's published leaderboard it is 0.74 in the middle and 0.14 at least, beside 1.39. Differences of a
#   point between two models look like many standard errors; a gate on the lower bound lets through what it should hold.
# Until that changes: draw instructions anew, fit again for each draw, and take the spread of that.
# Output seen (60 simulated rounds of 805 instructions, judged again each time; in points of a win rate, 54.7 in truth):
#   win rate:                  moved by 1.8 from round to round, its standard error 1.7
#   length_controlled_v1:      moved by 2.4 from round to round, its standard error 0.2; 95% intervals that hold 54.7: 0.12
#   length_controlled_minimal: moved by 2.6 from round to round, its standard error 0.0; 95% intervals that hold 54.7: 0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet alpaca-eval==0.6.6 scikit-learn==1.5.2 pandas==2.3.3 numpy==2.4.6
HF_HUB_OFFLINE=1 env/bin/python - <<'PYTHON'
import warnings

import numpy as np
import pandas as pd
from alpaca_eval.metrics import glm_winrate

warnings.filterwarnings("ignore")
ROUNDS, INSTRUCTIONS = 60, 805
SKILL, HARD, LENGTH = 0.2, 0.3, 0.8  # log-odds: of the model, of an instruction's difficulty, of a longer answer
DRAW = np.random.default_rng(0)
DIFFICULTY = DRAW.normal(size=INSTRUCTIONS)


def chance(log_odds):
    return 1 / (1 + np.exp(-log_odds))


def two_games():
    """What the library fetches from the hub: the baseline told to be terse and to be verbose, against itself."""
    for longer in (-1, 1):
        apart = DRAW.normal(longer, 0.5, INSTRUCTIONS)
        preferred = DRAW.random(INSTRUCTIONS) < chance(-LENGTH * np.tanh(apart))
        yield pd.DataFrame({
            "model": "baseline", "index": range(INSTRUCTIONS), "preference": preferred.astype(float),
            "std_delta_len": apart, "instruction_difficulty": DIFFICULTY, "not_gamed_baseline": False,
        })


pd.concat(two_games()).to_csv("games.csv", index=False)
glm_winrate.hf_hub_download = lambda **_: "games.csv"
LENGTHS = DRAW.integers(500, 1500, INSTRUCTIONS), DRAW.integers(800, 2000, INSTRUCTIONS)
APART = (LENGTHS[0] - LENGTHS[1]) / np.std(LENGTHS[0] - LENGTHS[1], ddof=1)
PREFERRED = chance(SKILL + HARD * DIFFICULTY - LENGTH * np.tanh(APART))
TRUTH = 100 * chance(SKILL + HARD * DIFFICULTY).mean()


def judged(seed):
    preferred = np.random.default_rng(seed).random(INSTRUCTIONS) < PREFERRED
    outputs = {f"output_{side}": ["x" * length for length in LENGTHS[side - 1]] for side in (1, 2)}
    return pd.DataFrame({
        "preference": 1.0 + preferred, "index": range(INSTRUCTIONS), "generator_1": "baseline", "generator_2": "model",
        "annotator": "judge", **outputs,
    }).set_index("index")


def rounds(formula):
    measure = glm_winrate.get_length_controlled_winrate
    return [measure(judged(seed), glm_name=formula, save_weights_dir=None) for seed in range(ROUNDS)]


def show(name, values, errors, counted):
    moved, error = np.std(values, ddof=1), np.mean(errors)
    held = np.mean(np.abs(np.subtract(values, TRUTH)) < 1.96 * np.asarray(errors))
    intervals = f"; 95% intervals that hold {TRUTH:.1f}: {held:.2f}" if counted else ""
    print(f"{name + ':':<26} moved by {moved:.1f} from round to round, its standard error {error:.1f}{intervals}")
    return moved, error, held


def column(measured, name):
    return [row[name] for row in measured]


full, minimal = rounds("length_controlled_v1"), rounds("length_controlled_minimal")
plain = show("win rate", column(full, "win_rate"), column(full, "standard_error"), False)
controlled = [
    show(name, column(measured, "length_controlled_winrate"), column(measured, "lc_standard_error"), True)
    for name, measured in (("length_controlled_v1", full), ("length_controlled_minimal", minimal))
]
right = 0.7 < plain[1] / plain[0] < 1.4
wrong = all(error < moved / 5 and held < 0.5 for moved, error, held in controlled) and controlled[1][1] < 1e-9
raise SystemExit(0 if right and wrong else "the behaviour has changed")
PYTHON
