"""How a step grows with the batch, the length, the model and the vocabulary; table and picture.

python benchmarks/scaling.py
"""

import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compare import HERE, Side, machine, write_section
from work import Size, floor_flops, write_models, write_rows

STEPS = 3
SERIES: dict[str, tuple[Size, ...]] = {
    "sequences": tuple(Size(sequences=n) for n in (16, 32, 64, 128, 256)),
    "length": tuple(Size(length_scale=scale, sequences=32) for scale in (0.125, 0.25, 0.5, 1.0)),
    "hidden size": tuple(Size(hidden=h, sequences=32) for h in (96, 192, 384, 576)),
    "vocabulary": tuple(
        Size(vocabulary=v, hidden=96, heads=2, sequences=16) for v in (4_096, 32_768, 131_072)
    ),
}


@dataclass(frozen=True)
class Point:
    """One measured size."""

    size: Size
    tokens: float
    seconds: float
    floor_seconds: float
    peak_mb: float

    @property
    def state_mb(self) -> float:
        """Weights, gradients and two moments, float32."""
        size = self.size
        weights = size.layers * size.weights_per_layer + 2 * size.vocabulary * size.hidden
        return 16 * weights / 2**20


def measure(size: Size) -> Point:
    """Take a few SFT steps and keep the quickest."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder, size)
        write_rows(folder, size)
        side = Side(Path(sys.executable), "ours.py", "sft", folder, {})
        try:
            answers = [side.ask("step") for _ in range(STEPS)]
            rate = max(side.ask("rate")["rate"] for _ in range(5))
        finally:
            side.close()
        return Point(
            size=size,
            tokens=answers[0]["tokens"],
            seconds=min(answer["cpu"] for answer in answers),
            floor_seconds=floor_flops(folder, size, "sft") / rate,
            peak_mb=answers[-1]["peak_mb"],
        )


def slope(points: Sequence[Point]) -> float:
    """Exponent of time in floor work, by least squares on logarithms; 1 is proportional."""
    pairs = [(math.log(p.floor_seconds), math.log(p.seconds)) for p in points]
    middle = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    above = sum((x - middle[0]) * (y - middle[1]) for x, y in pairs)
    return above / sum((x - middle[0]) ** 2 for x, _ in pairs)


def draw(series: dict[str, list[Point]], path: Path) -> None:
    """Plot time against the work that cannot be avoided, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.5))
    for name, points in series.items():
        axes.loglog(
            [p.floor_seconds for p in points], [p.seconds for p in points], "o-", label=name
        )
    ends = axes.get_xlim()
    axes.loglog(ends, ends, "k:", label="matmul floor")
    axes.set_xlabel("floor: needed FLOPs / measured matmul rate (s)")
    axes.set_ylabel("SFT step (s of processor time)")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    series = {name: [measure(size) for size in sizes] for name, sizes in SERIES.items()}
    rows = [
        "| grows | sequences | tokens | hidden | vocabulary | step | over the floor | peak memory "
        "| of it weights, gradients, moments |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, points in series.items():
        for p in points:
            rows.append(
                f"| {name} | {p.size.sequences} | {p.tokens:,.0f} | {p.size.hidden} "
                f"| {p.size.vocabulary:,} | {p.seconds:.2f} s "
                f"| {p.seconds / p.floor_seconds:.2f}x | {p.peak_mb:,.0f} MB "
                f"| {p.state_mb:,.0f} MB |"
            )
            print(rows[-1])
    slopes = ", ".join(f"{name} {slope(points):.2f}" for name, points in series.items())
    draw(series, HERE / "scaling.png")
    lines = [
        "## Growth of an SFT step",
        "",
        f"`python benchmarks/scaling.py` on {machine()}. Exponent of time in floor work (1 is "
        f"proportional): {slopes}.",
        "",
        "![time against floor](scaling.png)",
        "",
        *rows,
    ]
    write_section("scaling", lines)


if __name__ == "__main__":
    main()
