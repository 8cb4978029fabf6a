"""Decisions on a known truth, through the gates that decide in a run.

    python -m benchmarks.decisions

What is simulated are outcomes: which answer the judge, or people, prefer on each held-out prompt.
Everything after that is the product: intervals, alpha spending over looks, gates, verdicts.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlhf_core.config import GateConfig, PromotionConfig
from rlhf_core.evaluation.corrected import corrected_mean
from rlhf_core.evaluation.gates import decide
from rlhf_core.evaluation.win_rate import win_rate
from rlhf_core.schema import EvaluationReport, Look, ModelRef
from rlhf_core.statistics.intervals import SHARE, Resampling, estimate_mean
from rlhf_core.statistics.resampling import Array

SEED = 20_260_101
PROMPTS = 500
GATE = GateConfig(metric="policy/win_rate", at_least=0.55, min_samples=300)
PROMOTION = PromotionConfig(slice_margin=None)
RESAMPLES = 1_000
SLICES = tuple(
    slice(start, start + size)
    for size, number in ((167, 3), (62, 8), (45, 1))
    for start in range(0, PROMPTS - size + 2, size)[:number]
)
"""About those of the demo that are asked: thirds by length, and values of its tags."""

Row = tuple[str, str, str]
"""What was asked, what came out, what is wanted."""


def verdict(
    rng: np.random.Generator,
    *,
    look: int,
    over_sft: float,
    over_champion: float | None = None,
    promotion: PromotionConfig = PROMOTION,
) -> str:
    """Return the verdict about a candidate of which the true win rates are known.

    Args:
        rng: draws outcomes and resamples.
        look: which look at the held-out prompts it is.
        over_sft: true win rate over SFT, by the judge.
        over_champion: over the champion; None where there is none.
        promotion: how it is held to the champion.
    """
    share = Look(entry="-", held_out="-", number=look).share
    plan = Resampling(num_resamples=RESAMPLES, seed=int(rng.integers(2**31)), share=share)
    metrics = {"policy/win_rate": win_rate(_won(rng, over_sft), plan)}
    slices = {}
    if over_champion is not None:
        won = _won(rng, over_champion)
        metrics["policy/win_rate_over_champion"] = win_rate(won, plan)
        first = replace(plan, share=1.0)
        slices = {f"rows={rows.start}-{rows.stop}": win_rate(won[rows], first) for rows in SLICES}
    report = EvaluationReport(
        stage="policy",
        model=_MODEL,
        metrics=metrics,
        slices_over_champion=slices,
        champion=None if over_champion is None else "models:/rlhf-policy/1",
    )
    gates = [
        gate.model_copy(update={"confidence": replace(plan, confidence=gate.confidence).level})
        for gate in (GATE, *promotion.gates())
    ]
    return decide(gates, report, promotion=promotion).verdict


def false_promotions(rng: np.random.Generator, scale: float) -> Row:
    """Campaigns of 30 nights, every candidate exactly at the bound: any promotion is false."""
    campaigns, nights = max(1, int(1_000 * scale)), 30
    promoted = sum(
        any(
            verdict(rng, look=night, over_sft=GATE.at_least or 0.0) == "PROMOTE"
            for night in range(1, nights + 1)
        )
        for _ in range(campaigns)
    )
    found = f"{promoted} of {campaigns:,} campaigns ({100 * promoted / campaigns:.1f}%)"
    return f"campaigns of {nights} nights with a false promotion", found, "at most 5%"


def worse_replacements(rng: np.random.Generator, scale: float) -> Row:
    """Candidates that beat SFT clearly and lose to the champion 55:45."""
    trials = max(1, int(1_000 * scale))
    replaced = sum(
        verdict(rng, look=1, over_sft=0.7, over_champion=0.45) == "PROMOTE" for _ in range(trials)
    )
    return "champions replaced by one that loses 55:45", f"{replaced} of {trials:,}", "none"


def power(rng: np.random.Generator, scale: float, *, look: int, truth: float) -> Row:
    """How often a candidate that is truly better passes the gate of the win rate."""
    trials = max(1, int(2_000 * scale))
    passed = sum(verdict(rng, look=look, over_sft=truth) == "PROMOTE" for _ in range(trials))
    wanted = "at least 56%" if (look, truth) == (1, 0.6) else ""
    what = f"power at true {truth:g}, n = {PROMPTS}, look {look}"
    return what, f"{100 * passed / trials:.1f}% of {trials:,}", wanted


def better_replacements(rng: np.random.Generator, scale: float, *, look: int) -> Row:
    """Candidates that beat SFT clearly, and the champion alike in every slice."""
    trials, promotion = max(1, int(300 * scale)), PromotionConfig()
    promoted = sum(
        verdict(rng, look=look, over_sft=0.8, over_champion=0.65, promotion=promotion) == "PROMOTE"
        for _ in range(trials)
    )
    what = f"champions replaced by one that wins 65:35 in each of {len(SLICES)} slices, look {look}"
    return what, f"{100 * promoted / trials:.1f}% of {trials:,}", ""


def people(rng: np.random.Generator, scale: float, *, corrected: bool) -> Row:
    """Coverage of what people prefer, by a judge of accuracy 0.72 that likes a style.

    30% of the prompts bring an answer of the policy in that style; there the judge always prefers
    it. People prefer the policy's answers 45 times in 100, and 200 of the prompts have a vote.
    """
    trials, covered, truth = max(1, int(2_000 * scale)), 0, 0.45
    for _ in range(trials):
        liked = _won(rng, truth)
        right = rng.random(PROMPTS) < 0.72
        judged = np.where(rng.random(PROMPTS) < 0.3, 1.0, np.where(right, liked, 1.0 - liked))
        plan = Resampling(num_resamples=RESAMPLES, seed=int(rng.integers(2**31)))
        votes = np.full(PROMPTS, np.nan)
        asked = rng.permutation(PROMPTS)[:200]
        votes[asked] = liked[asked]
        estimate = corrected_mean(judged, votes, plan) if corrected else win_rate(judged, plan)
        covered += estimate.low <= truth <= estimate.high
    name = "corrected by 200 votes" if corrected else "by the judge alone"
    found = f"{100 * covered / trials:.1f}% of {trials:,}"
    wanted = "at least 93%" if corrected else ""
    return f"coverage of people's preference, biased judge, {name}", found, wanted


def topics(rng: np.random.Generator, scale: float, *, whole: bool) -> Row:
    """Coverage of the win rate on new topics: 50 topics of 20 prompts, each with its own rate."""
    trials, numbers = max(1, int(1_000 * scale)), np.repeat(np.arange(50), 20)
    covered = 0
    for _ in range(trials):
        rates = rng.beta(6.0, 4.0, size=50)[numbers]
        won = (rng.random(numbers.size) < rates).astype(np.float64)
        plan = Resampling(
            num_resamples=RESAMPLES,
            seed=int(rng.integers(2**31)),
            clusters=numbers if whole else None,
        )
        estimate = estimate_mean(won, plan, bounds=SHARE)
        covered += estimate.low <= 0.6 <= estimate.high
    name = "topics resampled whole" if whole else "prompts taken for independent"
    found = f"{100 * covered / trials:.1f}% of {trials:,}"
    return (
        f"coverage on 50 topics, {numbers.size:,} prompts, {name}",
        found,
        ("near 95%" if whole else ""),
    )


def _won(rng: np.random.Generator, rate: float) -> Array:
    return (rng.random(PROMPTS) < rate).astype(np.float64)


_MODEL = ModelRef(
    name="rlhf-policy",
    version="2",
    uri="models:/rlhf-policy/2",
    path=Path("-"),
    sha256="-",
    kind="causal",
    run_id="",
)

CASES: tuple[Callable[[np.random.Generator, float], Row], ...] = (
    false_promotions,
    worse_replacements,
    lambda rng, scale: power(rng, scale, look=1, truth=0.6),
    lambda rng, scale: power(rng, scale, look=5, truth=0.65),
    lambda rng, scale: power(rng, scale, look=30, truth=0.65),
    lambda rng, scale: people(rng, scale, corrected=False),
    lambda rng, scale: people(rng, scale, corrected=True),
    lambda rng, scale: topics(rng, scale, whole=False),
    lambda rng, scale: topics(rng, scale, whole=True),
    lambda rng, scale: better_replacements(rng, scale, look=1),
    lambda rng, scale: better_replacements(rng, scale, look=5),
    lambda rng, scale: better_replacements(rng, scale, look=30),
)


def measure(scale: float = 1.0) -> list[Row]:
    """Return every row; ``scale`` makes fewer trials of each."""
    streams = np.random.SeedSequence(SEED).spawn(len(CASES))
    return [
        case(np.random.default_rng(stream), scale)
        for case, stream in zip(CASES, streams, strict=True)
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="part of the trials")
    started, scale = time.monotonic(), parser.parse_args().scale
    print(f"gate {GATE.metric} at_least {GATE.at_least} at 95%, {PROMPTS} prompts")
    print("rule: error spent over looks, (1 - confidence) (3 / 4 - 1 / (4 k)) after k of them\n")
    for what, found, wanted in measure(scale):
        print(f"| {what} | {found} | {wanted} |")
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
