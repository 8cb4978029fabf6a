"""Pictures of a dataset: a PNG to look at and a CSV of the same numbers, for DVC plots."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf_core.schema.shown import shown_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 30
_WIDTH, _HEIGHT = 6.0, 3.6
_AROUND = {"left": 0.17, "right": 0.97, "bottom": 0.14, "top": 0.91}
"""Room for the labels, as shares of the picture. To have it measured ("constrained") takes longer
than to draw the picture."""


@dataclass(frozen=True, slots=True)
class PictureData:
    """What the pictures show."""

    chosen_lengths: Sequence[int]
    """Characters of every chosen response."""
    rejected_lengths: Sequence[int]
    agreements: Sequence[float]
    """Share of decided votes for the winner, every pair."""
    votes_per_annotator: Sequence[int]
    label_by_length: Sequence[tuple[float, float, int]]
    """Mean length difference a - b, share that a wins, pairs."""


def draw_pictures(data: PictureData, splits: Mapping[str, int], folder: Path) -> list[Path]:
    """Write ``<name>.png`` and ``<name>.csv`` for every picture; return the PNG files.

    Args:
        data: what the pictures show.
        splits: prepared file to its rows.
        folder: made here.
    """
    folder.mkdir(parents=True)
    return [
        _lengths(data, folder),
        _agreement(data, folder),
        _votes(data, folder),
        _label_by_length(data, folder),
        _splits(splits, folder),
    ]


def _lengths(data: PictureData, folder: Path) -> Path:
    both = np.concatenate([data.chosen_lengths, data.rejected_lengths])
    edges = np.histogram_bin_edges(both, bins=_BINS, range=(0, float(np.quantile(both, 0.99)) + 1))
    chosen, _ = np.histogram(data.chosen_lengths, edges)
    rejected, _ = np.histogram(data.rejected_lengths, edges)
    rows = list(zip(edges[:-1].tolist(), chosen.tolist(), rejected.tolist(), strict=True))

    def draw(axes: "Axes") -> None:
        axes.stairs(chosen, edges, label="chosen", fill=True, alpha=0.5)
        axes.stairs(rejected, edges, label="rejected", linewidth=1.5)
        axes.set(xlabel="characters", ylabel="responses", title="Length of responses")
        axes.legend()

    return _save(folder, "lengths", ("characters", "chosen", "rejected"), rows, draw)


def _agreement(data: PictureData, folder: Path) -> Path:
    edges = np.linspace(0, 1, 11)
    counts, _ = np.histogram(data.agreements, edges)
    rows = list(zip(edges[:-1].round(2).tolist(), counts.tolist(), strict=True))

    def draw(axes: "Axes") -> None:
        axes.stairs(counts, edges, fill=True)
        axes.set(xlabel="share of votes for the winner", ylabel="pairs", title="Agreement")

    return _save(folder, "agreement", ("agreement", "pairs"), rows, draw)


def _votes(data: PictureData, folder: Path) -> Path:
    votes = sorted(data.votes_per_annotator, reverse=True)
    rows = list(enumerate(votes, 1))

    def draw(axes: "Axes") -> None:
        axes.bar(np.arange(1, len(votes) + 1), votes, width=1.0)
        axes.set(xlabel="annotators, most votes first", ylabel="votes", title="Votes per annotator")

    return _save(folder, "votes_per_annotator", ("annotator", "votes"), rows, draw)


def _label_by_length(data: PictureData, folder: Path) -> Path:
    differences, shares, _ = zip(*data.label_by_length, strict=True)

    def draw(axes: "Axes") -> None:
        axes.plot(differences, shares, marker="o")
        axes.axhline(0.5, color="grey", linewidth=0.8)
        axes.set(
            xlabel="characters of a less characters of b",
            ylabel="share that a wins",
            title="Label by length",
            ylim=(0, 1),
        )

    header = ("difference", "a_wins", "pairs")
    return _save(folder, "label_by_length", header, data.label_by_length, draw)


def _splits(splits: Mapping[str, int], folder: Path) -> Path:
    rows = list(splits.items())
    names, sizes = [name for name, _ in rows], [size for _, size in rows]

    def draw(axes: "Axes") -> None:
        axes.figure.subplots_adjust(left=0.34)  # names of files
        axes.bar_label(axes.barh(names, sizes), fmt="{:,.0f}")
        axes.margins(x=0.25)
        axes.invert_yaxis()
        axes.set(xlabel="rows", title="Splits")

    return _save(folder, "splits", ("file", "rows"), rows, draw)


def _save(
    folder: Path,
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    draw: Callable[["Axes"], None],
) -> Path:
    """Write one picture. No date goes into the file: same data, same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([shown_cell(value) for value in row] for row in rows)
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=120)
    figure.subplots_adjust(**_AROUND)
    canvas = FigureCanvasAgg(figure)
    draw(figure.subplots())
    path = folder / f"{name}.png"
    canvas.print_png(path, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return path
