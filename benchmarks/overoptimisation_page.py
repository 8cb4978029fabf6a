"""Table and picture of over-optimisation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.overoptimisation_curves import Curve, Way, fitted, lost, means
from rlhf_core.schema import Estimate

COLUMNS = (
    "",
    "proxy",
    "alpha",
    "beta",
    "form falls from d",
    "gold, highest (at d)",
    "gold, at the end (d)",
    "change since the highest",
    "proxy, at the end",
    "gold of the checkpoint offered (d)",
)
WAYS: tuple[Way, ...] = ("best of n", "PPO")
TITLES = {"best of n": "best of n", "PPO": "PPO, no KL term"}


def table(curves: Sequence[Curve]) -> str:
    """Return the table, in Markdown; intervals are 95% over prompts."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(row_of, curves)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def row_of(curve: Curve) -> tuple[str, ...]:
    """Return the cells of a curve."""
    fit, gold, proxy = fitted(curve), means(curve.gold_reward), means(curve.proxy_reward)
    best = int(np.argmax([point.value for point in gold]))
    at = [f"{one:.2f}" for one in curve.distances]
    offered = ""
    if curve.offered in curve.steps:
        place = curve.steps.index(curve.offered)
        offered = f"{shown(gold[place])} ({at[place]})"
    return (
        curve.way,
        curve.proxy,
        shown(fit.alpha),
        shown(fit.beta),
        "-" if fit.peak is None else f"{fit.peak:.2f}",
        f"{shown(gold[best])} ({at[best]})",
        f"{shown(gold[-1])} ({at[-1]})",
        shown(lost(curve)),
        shown(proxy[-1]),
        offered,
    )


def shown(estimate: Estimate) -> str:
    """Return a value with its interval."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw best-of-n and PPO side by side: gold solid with its band and form, proxy dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8))
    colours = {
        name: f"C{place}" for place, name in enumerate(dict.fromkeys(c.proxy for c in curves))
    }
    for panel, way in zip(panels, WAYS, strict=True):
        for curve in curves:
            if curve.way == way:
                draw_curve(panel, curve, colours[curve.proxy])
        panel.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
        panel.set_title(TITLES[way])
        panel.set_xlabel("d = sqrt(KL from SFT), nats$^{1/2}$")
        panel.set_ylabel("reward, standard deviations of SFT's answers")
    panels[0].legend(fontsize="small")
    figure.text(0.5, -0.02, NOTE, ha="center", fontsize="small")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


NOTE = (
    "Solid points: gold reward with 95% intervals. Solid line: the form fitted to it. "
    "Dashed: the proxy that was optimised. Star: the checkpoint that the judge offers."
)


def draw_curve(panel: Any, curve: Curve, colour: str) -> None:
    """Draw the points of a curve, and the form through its gold reward."""
    at, gold = curve.distances, means(curve.gold_reward)
    order = np.argsort(at)
    ends = np.array([[point.low, point.high] for point in gold])[order]
    panel.fill_between(at[order], ends[:, 0], ends[:, 1], color=colour, alpha=0.15, linewidth=0)
    panel.plot(at, [point.value for point in gold], "o", color=colour, markersize=4)
    fine = np.linspace(0.0, at.max(), 200)
    panel.plot(fine, fitted(curve)(fine), "-", color=colour, label=curve.proxy)
    panel.plot(at[order], curve.proxy_reward.mean(axis=1)[order], "--", color=colour, linewidth=1)
    if curve.offered in curve.steps:
        place = curve.steps.index(curve.offered)
        panel.plot(at[place], gold[place].value, "*", color=colour, markersize=14, mec="black")
