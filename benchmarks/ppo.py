"""Run TRL's last PPOTrainer and ours on the same work and say how they compare.

    python benchmarks/ppo.py [--peer PYTHON] [--rounds N] [--setting NAME]

First both replay the same responses from the same weights: advantages, KL and losses must agree to
1e-5. Then each setting starts both processes, warms them up with one iteration, and takes
iterations A B A B. Each side samples for itself, so a pair of iterations is only alike on average.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from compare import Side, machine, write_section
from ppo_work import EPOCHS, write_replay, write_work
from work import Size

HERE = Path(__file__).parent
PEER = HERE.parent / ".peer-ppo" / "bin" / "python"
TOLERANCE = 1e-5
MEAN_LENGTH = 40


@dataclass(frozen=True)
class PpoSetting:
    """What is run; ``ours`` are settings of ours beyond the length of a response."""

    name: str
    max_new_tokens: int = 64
    ours: dict[str, object] = field(default_factory=dict)
    size: Size = field(default_factory=Size)


SETTINGS = (
    PpoSetting("responses up to 64"),
    PpoSetting("responses up to 160", 160),
    PpoSetting(
        "responses up to 64; ours in micro-batches of 512 tokens", 64, {"micro_batch_tokens": 512}
    ),
    PpoSetting("responses up to 64; ours with one trunk", 64, {"share_trunk": True}),
    PpoSetting(
        "responses up to 64; ours with compiled layers", 64, {"compute": {"compile_layers": True}}
    ),
)
HEADER = (
    "| setting | times faster (spread) | by the wall clock | processor time of an iteration "
    "| our response tokens/s | generation, peer -> ours | peak memory |\n"
    "|---|---|---|---|---|---|---|"
)


def replay(peer: Path) -> str:
    """Replay one iteration on both sides.

    Returns:
        How far apart they are, in words.

    Raises:
        SystemExit: further than rounding.
    """
    size = Size(hidden=64, layers=2, heads=2, vocabulary=512)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_work(folder, size, mean_length=MEAN_LENGTH)
        write_replay(folder, size, length=24)
        theirs = _answer(peer, "ppo_peer.py", folder)
        ours = _answer(Path(sys.executable), "ppo_ours.py", folder)
    count = sum(len(row) for row in ours["advantages"])
    # The peer whitens with n - 1 where we divide by n; the loss is proportional to the advantages.
    ours["policy_loss"] *= ((count - 1) / count) ** 0.5
    gaps = {
        name: abs(ours[name] - theirs[name])
        for name in ("kl", "score", "entropy", "policy_loss", "value_loss")
    }
    gaps["advantages"] = max(
        abs(one - other)
        for row, other_row in zip(ours["advantages"], theirs["advantages"], strict=True)
        for one, other in zip(row, other_row, strict=True)
    )
    if not max(gaps.values()) <= TOLERANCE:
        raise SystemExit(f"the two sides disagree on the same responses: {gaps}")
    return ", ".join(f"{name} {gap:.0e}" for name, gap in gaps.items())


def _answer(python: Path, script: str, folder: Path) -> dict:
    run = subprocess.run(
        [str(python), str(HERE / script), "replay", str(folder), "{}"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if run.returncode:
        raise SystemExit(run.stderr[-3_000:])
    return json.loads(run.stdout)


def compare(setting: PpoSetting, peer: Path, rounds: int) -> str:
    """Time one setting and return its row of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_work(folder, setting.size, mean_length=MEAN_LENGTH)
        options = {"max_new_tokens": setting.max_new_tokens, **setting.ours}
        theirs = Side(
            peer, "ppo_peer.py", "time", folder, {"response_length": setting.max_new_tokens}
        )
        ours = Side(Path(sys.executable), "ppo_ours.py", "time", folder, options)
        try:
            theirs.ask("step"), ours.ask("step")
            turns = [(theirs.ask("step"), ours.ask("step")) for _ in range(rounds)]
        finally:
            theirs.close()
            ours.close()
    ratios = [a["cpu"] / b["cpu"] for a, b in turns]
    middle = [
        {name: statistics.median(turn[side][name] for turn in turns) for name in turns[0][side]}
        for side in (0, 1)
    ]
    peer_side, our_side = middle
    return (
        f"| {setting.name} | **{statistics.median(ratios):.2f}x** "
        f"({min(ratios):.2f}-{max(ratios):.2f}) | {peer_side['wall'] / our_side['wall']:.2f}x "
        f"| {peer_side['cpu']:.1f} s -> {our_side['cpu']:.1f} s "
        f"| {our_side['tokens'] / our_side['cpu']:.0f} "
        f"| {peer_side['generate']:.0%} -> {our_side['generate']:.0%} "
        f"| {peer_side['peak_mb']:,.0f} -> {our_side['peak_mb']:,.0f} MB "
        f"(**{our_side['peak_mb'] / peer_side['peak_mb']:.2f}x**) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, default=PEER, help="python with TRL 1.12")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--setting", help="only this one, and nothing is written")
    arguments = parser.parse_args()
    before, rows = os.getloadavg()[0], []
    agreement = replay(arguments.peer)
    print(f"same responses, largest differences: {agreement}", flush=True)
    for setting in SETTINGS:
        if arguments.setting in (None, setting.name):
            rows.append(compare(setting, arguments.peer, arguments.rounds))
            print(rows[-1], flush=True)
    if arguments.setting is None:
        command = f"python benchmarks/ppo.py --rounds {arguments.rounds}"
        load = f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
        note = f"`{command}` on {machine()}; {load}. 64 prompts, {EPOCHS} epochs of 4 minibatches."
        lines = ["## ppo", "", note, f"Replayed: {agreement}.", "", HEADER, *rows]
        write_section("ppo", lines)


if __name__ == "__main__":
    main()
