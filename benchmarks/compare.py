"""Run TRL and ours in turns on the same work and say how they compare.

    python benchmarks/compare.py STAGE [--peer PYTHON] [--rounds N] [--setting A] [--ours B]

STAGE is sft, reward or dpo. Each setting starts the peer and ours, warms them up with two steps,
whose losses must agree to 1e-5, then takes steps A B A B. Seconds are processor seconds of one
thread: other work on the machine changes wall time by much more than it changes these. Settings of
two threads compare the wall's seconds and want a quiet machine.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from results import keep
from settings import SETTINGS, Setting
from sides import HERE, Answer, Turns, load
from work import Size, floor_flops, write_models, write_rows

PEER = HERE.parent / ".peer" / "bin" / "python"
Chosen = TypeVar("Chosen")
WARM_UP, LOSS_TOLERANCE = 2, 1e-5


def compare(stage: str, setting: Setting, peer: Path, rounds: int) -> dict[str, dict]:
    """Compare one setting of the peer with each of ours.

    Returns:
        Name of ours to what it came to.

    Raises:
        SystemExit: the two sides do not compute the same losses.
    """
    size = Size()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder, size)
        write_rows(folder, size)
        flops = [
            floor_flops(folder, size, stage, reference=bool(options.get("reference_each_step")))
            for options in setting.ours.values()
        ]
        turns = Turns(peer, ("peer.py", "ours.py"), stage, folder)
        with turns.start(setting.peer, list(setting.ours.values()), setting.threads):
            theirs, *warm = turns.take(WARM_UP)
            gaps = [_loss_gap(theirs, answers) for answers in warm]
            if setting.same_numbers and max(gaps) > LOSS_TOLERANCE:
                raise SystemExit(f"{setting.name}: losses differ by {max(gaps)}")
            theirs, *ours = turns.take(rounds)
            rate = turns.sides[-1].rates()["rate"]
    found = {}
    for name, answers, gap, least in zip(setting.ours, ours, gaps, flops, strict=True):
        found[name] = {
            **ratio_and_memory(theirs, answers, "cpu" if setting.threads == 1 else "wall"),
            "tokens_per_second": answers[0]["tokens"] / median(answers, "cpu"),
            "over_floor": median(answers, "cpu") * rate / least,
            "threads": setting.threads,
            "loss_gap": gap,
        }
    return found


def _loss_gap(theirs: list[Answer], ours: list[Answer]) -> float:
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(theirs, ours, strict=True))


def median(answers: list[Answer], name: str) -> float:
    """Median over the rounds."""
    return statistics.median(answer[name] for answer in answers)


def ratio_and_memory(
    theirs: list[Answer], ours: list[Answer], clock: str = "cpu"
) -> dict[str, object]:
    """Return what every comparison states: ratios of each round, seconds, peak memory, load.

    ``clock`` is what the ratios are of: ``cpu`` for processor seconds, ``wall`` for the wall's.
    """
    return {
        "ratios": [a[clock] / b[clock] for a, b in zip(theirs, ours, strict=True)],
        "wall_ratio": median(theirs, "wall") / median(ours, "wall"),
        "peer_seconds": median(theirs, "cpu"),
        "our_seconds": median(ours, "cpu"),
        "peer_mb": theirs[-1]["peak_mb"],
        "our_mb": ours[-1]["peak_mb"],
        "load": load(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=sorted(SETTINGS))
    parser.add_argument("--peer", type=Path, default=PEER, help="python with TRL")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--setting", action="append", help="only this one; may be repeated")
    parser.add_argument("--ours", action="append", help="only this of ours; may be repeated")
    arguments = parser.parse_args()
    for setting in chosen(SETTINGS[arguments.stage], arguments.setting, arguments.ours):
        found = compare(arguments.stage, setting, arguments.peer, arguments.rounds)
        for name, values in found.items():
            keep(arguments.stage, f"{setting.name} | {name}", values)


def chosen(
    settings: Sequence[Chosen], names: list[str] | None, ours: list[str] | None
) -> list[Chosen]:
    """Return the settings with these names, each with these of ours; None takes all."""
    found = []
    for setting in settings:
        kept = {name: options for name, options in setting.ours.items() if not ours or name in ours}
        if kept and (not names or setting.name in names):
            found.append(replace(setting, ours=kept))
    return found


if __name__ == "__main__":
    main()
