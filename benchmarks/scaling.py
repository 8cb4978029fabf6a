"""How a step grows with batch, length, model, vocabulary and amount of data; table and picture.

python benchmarks/scaling.py [--series NAME ...]
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path

from results import keep, read
from settings import LARGE_BATCHES
from sides import HERE, Side
from work import Size, floor_flops, read_rows, write_models, write_rows

STEPS = 3
BATCH = 64
DATA = "rows of data, batch of 64"
SERIES: dict[str, tuple[Size, ...]] = {
    "batch": tuple(Size(sequences=n) for n in (16, 32, 64, 128)),
    "length": tuple(Size(length_scale=scale, sequences=32) for scale in (0.125, 0.25, 0.5, 1.0)),
    "parameters": tuple(Size(hidden=h, sequences=32) for h in (96, 192, 384, 576)),
    "vocabulary": tuple(
        Size(vocabulary=v, hidden=96, heads=2, sequences=16) for v in (4_096, 32_768, 131_072)
    ),
    DATA: tuple(Size(sequences=n) for n in (64, 1_024, 16_384)),
}


def measure(size: Size, *, batch: int | None) -> dict:
    """Take a few SFT steps and keep the quickest.

    Args:
        size: of model and data.
        batch: rows of a step; None takes all.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder, size)
        write_rows(folder, size)
        with Side(
            Path(sys.executable), "ours.py", "sft", folder, {"batch": batch, **LARGE_BATCHES}
        ) as side:
            answers = [side.ask("step") for _ in range(STEPS)]
            rate = side.rates()["rate"]
        best = min(answers, key=lambda answer: answer["cpu"])
        weights = size.layers * size.weights_per_layer + 2 * size.vocabulary * size.hidden
        rows = read_rows(folder, "demonstrations")
        all_tokens = sum(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows)
        share = best["tokens"] / all_tokens if batch else 1.0
        return {
            "rows": size.sequences,
            "vocabulary": size.vocabulary,
            "parameters": weights,
            "tokens": best["tokens"],
            "seconds": best["cpu"],
            "floor_seconds": share * floor_flops(folder, size, "sft") / rate,
            "peak_mb": answers[-1]["peak_mb"],
            "state_mb": 16 * weights / 2**20,
        }


def slope(points: list[dict], along: str) -> float:
    """Exponent of time in ``along``, by least squares on logarithms; 1 is proportional."""
    pairs = [(math.log(point[along]), math.log(point["seconds"])) for point in points]
    middle = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    above = sum((x - middle[0]) * (y - middle[1]) for x, y in pairs)
    return above / sum((x - middle[0]) ** 2 for x, _ in pairs)


def measured() -> dict[str, list[dict]]:
    """Return the points of each series measured so far."""
    rows = read()["scaling"]["rows"]
    names = {name: f"{name} | " for name in SERIES}
    found = {
        name: [values for row, values in rows.items() if row.startswith(prefix)]
        for name, prefix in names.items()
    }
    return {name: points for name, points in found.items() if points}


def draw(series: dict[str, list[dict]], path: Path) -> None:
    """Plot on logarithmic axes: time against the work that cannot be avoided, memory against it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (time, memory) = plt.subplots(1, 2, figsize=(10, 4.5))
    for name, points in series.items():
        if name != DATA:
            floors = [point["floor_seconds"] for point in points]
            time.loglog(floors, [point["seconds"] for point in points], "o-", label=name)
    ends = time.get_xlim()
    time.loglog(ends, ends, "k:", label="matmul floor")
    time.set_xlabel("floor: needed FLOPs / measured matmul rate (s)")
    time.set_ylabel("SFT step (s of processor time)")
    time.legend()
    for name in (DATA, "batch"):
        points = series.get(name, [])
        rows = [point["rows"] for point in points]
        memory.loglog(rows, [point["peak_mb"] for point in points], "o-", label=name)
    memory.set_ylim(100, 10_000)
    memory.set_xlabel("sequences")
    memory.set_ylabel("peak memory (MB)")
    memory.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", action="append", choices=sorted(SERIES))
    arguments = parser.parse_args()
    for name in arguments.series or SERIES:
        for number, size in enumerate(SERIES[name]):
            point = measure(size, batch=BATCH if name == DATA else None)
            keep("scaling", f"{name} | {number}", point)
    series = measured()
    draw(series, HERE / "scaling.png")
    along = {"batch": "tokens", "length": "floor_seconds", "parameters": "floor_seconds"}
    slopes = ", ".join(
        f"{name} {slope(series[name], column):.2f}"
        for name, column in along.items()
        if name in series
    )
    text = (
        "Exponent of time (1 is proportional) in tokens as the batch grows, and in the needed "
        f"FLOPs as lengths or parameters grow: {slopes}.\n\n![growth](scaling.png)"
    )
    keep("scaling", "note: slopes", {"text": text})


if __name__ == "__main__":
    main()
