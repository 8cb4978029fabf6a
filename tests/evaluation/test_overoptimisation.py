"""The benchmark of over-optimisation: best-of-n against enumeration, fits against known forms."""

import itertools
import math

import numpy as np
import pytest

from benchmarks.overoptimisation import (
    OF_POLICIES,
    Measured,
    Plan,
    Proxy,
    ScoredAnswer,
    best_of_n_curve,
    few_pairs,
    measured,
    proxies,
    settings_of,
)
from benchmarks.overoptimisation_curves import (
    Curve,
    Unit,
    best_of_n_values,
    best_of_n_weights,
    coefficients,
    fitted,
    lost,
)
from benchmarks.overoptimisation_page import draw, table
from benchmarks.resumable import require_same_settings
from rlhf_core.errors import ConfigError
from rlhf_core.schema import DatasetRef, DatasetSplits, Message, PreferencePair
from rlhf_core.storage.records import read_records, write_records


def test_best_of_n_is_the_mean_over_all_ways_to_take_n_of_the_answers():
    rng = np.random.default_rng(0)
    chosen_by, values = rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    sizes = [1, 2, 4, 6]
    found = best_of_n_values(chosen_by, values, sizes)
    for row, n in itertools.product(range(3), sizes):
        subsets = [list(taken) for taken in itertools.combinations(range(6), n)]
        picked = [values[row, taken[int(chosen_by[row, taken].argmax())]] for taken in subsets]
        assert found[sizes.index(n), row] == pytest.approx(np.mean(picked))


def test_best_of_two_of_three_takes_the_highest_in_two_ways_of_three():
    assert best_of_n_weights(3, 2) == pytest.approx([0, 1 / 3, 2 / 3])
    assert best_of_n_weights(128, 64).sum() == pytest.approx(1.0)


def test_in_its_own_unit_sft_is_0_for_every_prompt_and_1_apart():
    unit = Unit.of(np.array([[1.0, 3.0], [10.0, 12.0]]))
    # Squares 1 + 1 + 1 + 1 over four answers less two means: variance 2.
    assert unit.deviation == pytest.approx(math.sqrt(2.0))
    assert unit(np.array([[2.0], [15.0]])).ravel() == pytest.approx([0.0, 4.0 / math.sqrt(2.0)])


DISTANCES = np.array([0.0, 0.5, 1.0, 2.0, 3.0])


def rewards_of(way, alpha, beta):
    """The forms as Gao et al. write them."""
    if way == "best of n":
        return np.array([d * (alpha - beta * d) for d in DISTANCES])
    return np.array([d * (alpha - beta * math.log(d)) if d else 0.0 for d in DISTANCES])


def curve_of(way, alpha, beta, *, noise=0.0, prompts=50, offered=None):
    rng = np.random.default_rng(1)
    gold = rewards_of(way, alpha, beta)[:, None] + noise * rng.normal(size=(5, prompts))
    kl = np.repeat(DISTANCES[:, None] ** 2, prompts, axis=1)
    return Curve(way, "one", (0, 5, 10, 15, 20), kl, gold, 2.0 * kl, offered)


@pytest.mark.parametrize("way", ["best of n", "PPO"])
def test_the_fit_finds_alpha_and_beta_and_where_the_form_falls(way):
    fit = fitted(curve_of(way, 1.5, 0.5, noise=0.2))
    for found, true in ((fit.alpha, 1.5), (fit.beta, 0.5)):
        assert found.low < true < found.high
        assert found.high - found.low < 0.4
    exact = fitted(curve_of(way, 1.5, 0.5, noise=1e-9))
    assert exact(DISTANCES) == pytest.approx(rewards_of(way, 1.5, 0.5), abs=1e-6)
    fine = np.linspace(0.01, 20.0, 20_000)
    assert exact.peak == pytest.approx(fine[exact(fine).argmax()], abs=1e-2)
    assert fitted(curve_of(way, 1.5, -0.5, noise=1e-9)).peak is None


def test_least_squares_agree_with_a_solver_of_linear_systems():
    rewards = np.array([0.1, 0.9, 1.0, 1.3, 0.2])
    inner = DISTANCES[1:]
    matrix = np.stack([inner, -inner * np.log(inner)], axis=1)
    expected = np.linalg.lstsq(matrix, rewards[1:], rcond=None)[0]
    assert coefficients("PPO", DISTANCES, rewards) == pytest.approx(tuple(expected))


def test_a_distance_that_noise_put_below_0_is_0():
    kl = np.full((2, 3), -0.01)
    assert Curve("PPO", "one", (5, 10), kl, kl, kl).distances.tolist() == [0.0, 0.0]


def test_what_was_lost_is_counted_from_the_best_point():
    found = lost(curve_of("best of n", 1.0, 0.5, noise=1e-9))
    assert found.value == pytest.approx(3.0 * (1.0 - 1.5) - 0.5)


def test_answers_come_back_by_prompt_and_by_model(tmp_path):
    rows = [
        ScoredAnswer(
            prompt=f"p{prompt}",
            response="",
            gold=10.0 * prompt + answer,
            scores=(prompt, answer),
            kl=0.0,
        )
        for answer in range(3)
        for prompt in range(2)
    ]
    write_records(tmp_path / "answers.jsonl", rows)
    found = measured(tmp_path / "answers.jsonl", num_prompts=2)
    assert found.gold.tolist() == [[0, 1, 2], [10, 11, 12]]
    assert found.scores.tolist() == [[[0, 0, 0], [1, 1, 1]], [[0, 1, 2], [0, 1, 2]]]
    together, worst = (found.proxy(Proxy("", 2, how)) for how in ("mean", "worst"))
    assert together.tolist() == [[0, 0.5, 1], [0.5, 1, 1.5]]
    assert worst.tolist() == [[0, 0, 0], [0, 1, 1]]
    assert found.proxy(proxies(2)[0]).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_best_of_n_by_a_proxy_that_hates_gold_falls_and_begins_at_0():
    gold = np.random.default_rng(2).normal(size=(30, 8))
    curve = best_of_n_curve(Measured(gold, -gold[None], np.zeros_like(gold)), proxies(2)[0])
    assert curve.steps == (1, 2, 4, 8)
    assert curve.distances == pytest.approx(
        [math.sqrt(math.log(n) - (n - 1) / n) for n in (1, 2, 4, 8)]
    )
    assert curve.gold_reward[0] == pytest.approx(np.zeros(30), abs=1e-12)
    assert (np.diff(curve.gold_reward.mean(axis=1)) < 0).all()
    assert curve.proxy_reward == pytest.approx(-curve.gold_reward)


def test_table_and_picture_show_every_curve(tmp_path):
    curves = [curve_of("best of n", 1.5, 0.5, noise=0.1)]
    curves += [curve_of("PPO", 1.5, 0.5, noise=0.1, offered=10)]
    lines = table(curves).splitlines()
    assert len(lines) == 4
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[:2] == ["PPO", "one"]
    assert cells[-1].endswith("(1.00)")
    assert lines[2].rstrip(" |").endswith("]")
    draw(curves, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.fixture
def splits(tmp_path):
    pairs = [
        PreferencePair(
            comparison_id=f"c{number}",
            prompt=(Message(role="user", content=f"Question {number}?"),),
            chosen="Yes.",
            rejected="No.",
            agreement=1.0,
        )
        for number in range(20)
    ]
    path = tmp_path / "reward_train.jsonl"
    write_records(path, pairs)
    whole = DatasetRef(path=path, sha256="-", num_rows=20, dvc_md5="-", git_revision=None)
    return DatasetSplits.model_construct(reward_train=whole)


def test_each_member_learns_from_pairs_of_its_own_the_same_every_time(splits, tmp_path):
    def ids(member):
        part = few_pairs(splits, 8, member, tmp_path / str(member)).reward_train
        return {pair.comparison_id for pair in read_records(part, PreferencePair)}

    first, second = ids(0), ids(1)
    assert len(first) == len(second) == 8
    assert first != second
    assert ids(0) == first
    with pytest.raises(ConfigError, match="--pairs 21: the reward model's half has 20 pairs"):
        few_pairs(splits, 21, 0, tmp_path)


def test_policies_have_no_kl_term_and_other_plans_are_refused(tmp_path):
    config = settings_of("x", {**OF_POLICIES, "evaluation.num_prompts": "7"}, seed=3)
    assert (config.seed, config.policy.kl_coef, config.evaluation.num_prompts) == (3, 0.0, 7)
    plan = Plan(pairs=400, members=4, drawn=64, answers=4)
    require_same_settings(tmp_path, plan, "plan")
    require_same_settings(tmp_path, plan, "plan")
    with pytest.raises(SystemExit, match=r"plan.json: these results are of other settings"):
        require_same_settings(tmp_path, plan.model_copy(update={"pairs": 300}), "plan")
