"""Pictures of a report, as ``data:`` addresses so that the page needs no other file."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.schema import CheckpointChoice, Estimate
from rlhf_core.storage.records import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
POLICY, SFT = "#2563eb", "#f59e0b"
LEGEND: Any = {"frameon": False, "fontsize": 8, "labelcolor": FAINT}
LABEL_LENGTH = 32
"""Letters of a label that are shown; a longer one would leave no room for the picture."""
COLOURS = (POLICY, SFT, "#059669", "#dc2626")

_OF_ROUNDS = {"gold/win_rate": "by the gold rater", "policy/win_rate": "by the judge"}

Curve = tuple[Sequence[int], Sequence[float]]


def curve_plot(title: str, curves: Mapping[str, Curve]) -> str:
    """Lines over training steps, one per metric."""
    figure, axes = _figure(4.6, 2.7)
    for (name, (steps, values)), colour in zip(curves.items(), COLOURS, strict=False):
        sparse = len(steps) <= 12
        axes.plot(
            steps, values, color=colour, linewidth=1.6, marker="o" if sparse else "",
            markersize=3, label=name.split("/", 1)[-1],
        )  # fmt: skip
    axes.set_title(title)
    axes.set_xlabel("step")
    if len(curves) > 1:
        axes.legend(**LEGEND)
    return _address(figure)


def frontier_plot(title: str, kl: Sequence[float], score: Sequence[float]) -> str:
    """Reward against distance from SFT, coloured by time: what each nat of KL has bought."""
    figure, axes = _figure(4.6, 2.7)
    axes.plot(kl, score, color=GRID, linewidth=1.0, zorder=1)
    dots = axes.scatter(kl, score, c=range(len(kl)), cmap="viridis", s=14, zorder=2)
    bar = figure.colorbar(dots, ax=axes, pad=0.02)
    bar.set_label("iteration", color=FAINT, fontsize=8)
    bar.ax.tick_params(labelsize=7, colors=FAINT)
    bar.outline.set_visible(False)
    axes.set_title(title)
    axes.set_xlabel("KL from SFT, nats per response")
    axes.set_ylabel("score")
    return _address(figure)


def interval_plot(title: str, rows: Mapping[str, Mapping[str, Estimate]], *, neutral: float) -> str:
    """Estimates with their intervals, a line each, around the value that means no difference.

    Args:
        title: of the picture.
        rows: label to series to estimate; series share their colours over all labels.
        neutral: where the dashed line stands.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure, axes = _figure(4.6, 0.9 + 0.26 * len(rows) * max(1, len(series)) ** 0.5)
    for number, name in enumerate(series):
        offset = 0.16 * (number - (len(series) - 1) / 2)
        for place, (_, row) in enumerate(rows.items()):
            if name in row:
                _interval(axes, row[name], place + offset, COLOURS[number % len(COLOURS)])
        axes.plot([], [], "o", color=COLOURS[number % len(COLOURS)], markersize=4, label=name)
    axes.axvline(neutral, color=FAINT, linestyle="--", linewidth=1.0, zorder=0)
    # A dollar in a tag begins no formula.
    axes.set_yticks(range(len(rows)), labels=[_cut(label) for label in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    # Over the whole picture: long labels leave the axes less room than a title takes.
    figure.suptitle(title, color=INK, fontsize=9.5, fontweight="bold")
    if len(series) > 1:
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower right", ncols=4, **LEGEND
        )
    return _address(figure)


def checkpoint_plot(title: str, choice: CheckpointChoice) -> str:
    """Win rates of a policy's checkpoints with their intervals and KL; says which is offered."""
    rows = {}
    for score in choice.scores:
        kl = "" if score.kl is None else f", KL {score.kl.value:.2f}"
        offered = ", offered" if score.step == choice.step else ""
        rows[f"{score.step}{kl}{offered}"] = {"win rate": score.win_rate}
    about = f"{title}, win rate over SFT, {choice.num_prompts} prompts"
    return interval_plot(about, rows, neutral=0.5)


def _cut(label: str) -> str:
    return label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 1]}…"


def _interval(axes: "Axes", estimate: Estimate, place: float, colour: str) -> None:
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=2.0)
    axes.plot([estimate.value], [place], "o", color=colour, markersize=4.5)


def length_plot(title: str, lengths: Mapping[str, Sequence[int]]) -> str:
    """Histograms of response length over the same bins."""
    figure, axes = _figure(4.6, 2.7)
    longest = max(max(values) for values in lengths.values())
    bins = [edge * (longest + 1) / 30 for edge in range(31)]
    for (name, values), colour in zip(lengths.items(), COLOURS, strict=False):
        axes.hist(values, bins=bins, color=colour, alpha=0.45, label=name)
        axes.hist(values, bins=bins, color=colour, histtype="step", linewidth=1.3)
    axes.set_title(title)
    axes.set_xlabel("tokens")
    axes.legend(**LEGEND)
    return _address(figure)


def save_rounds_plot(path: Path, rounds: Mapping[int, Mapping[str, Estimate]]) -> None:
    """Save win rates over SFT after each round, with their intervals, as a PNG file.

    Args:
        path: of the file.
        rounds: number of the round to its metrics; those of ``_OF_ROUNDS`` are drawn.
    """
    figure, axes = _figure(5.2, 3.2)
    for number, (name, label) in enumerate(_OF_ROUNDS.items()):
        given = {at: found[name] for at, found in rounds.items() if name in found}
        if not given:
            continue
        places = [at + 0.06 * (number - 0.5) for at in given]
        middle = [one.value for one in given.values()]
        below = [one.value - one.low for one in given.values()]
        above = [one.high - one.value for one in given.values()]
        axes.errorbar(
            places, middle, yerr=[below, above], color=COLOURS[number], marker="o",
            markersize=4.5, linewidth=1.2, capsize=3, label=label,
        )  # fmt: skip
    axes.axhline(0.5, color=FAINT, linestyle="--", linewidth=1.0, zorder=0)
    axes.set_xticks(sorted(rounds))
    axes.set_xlabel("round")
    axes.set_ylabel("win rate over SFT")
    axes.set_title("Win rate after each round of collecting and labelling")
    axes.title.set(color=INK, fontsize=9.5, fontweight="bold")
    axes.legend(**LEGEND)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    axes.xaxis.label.set(color=FAINT, fontsize=8)
    axes.yaxis.label.set(color=FAINT, fontsize=8)
    return figure, axes


def _address(figure: "Figure") -> str:
    from matplotlib import rc_context

    for axes in figure.axes:
        axes.title.set(color=INK, fontsize=9.5, fontweight="bold")
    picture = io.BytesIO()
    # A fixed salt and no date: the same numbers give the same bytes.
    with rc_context({"svg.hashsalt": "rlhf", "svg.fonttype": "path"}):
        figure.savefig(picture, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode("ascii")
