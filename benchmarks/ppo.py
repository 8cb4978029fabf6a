"""Run TRL's last PPOTrainer and ours on the same work and say how they compare.

    python benchmarks/ppo.py [--peer PYTHON] [--rounds N] [--warm-up N] [--setting A] [--ours B]

First both replay the same responses from the same weights: advantages, KL and losses must agree to
1e-5. Then each setting starts the peer and ours, warms them up with one iteration, and takes
iterations A B A B. Each side samples for itself, so a pair of iterations is only alike on average.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compare import chosen, median, ratio_and_memory
from ppo_work import EPOCHS, LEARNING_RATE, MINIBATCHES, floor, write_replay, write_work
from results import keep
from sides import HERE, Answer, Turns, environment
from work import Size

PEER = HERE.parent / ".peer-ppo" / "bin" / "python"
TOLERANCE = 1e-5
MEAN_LENGTH = 40
PARTS = ("generate", "score", "update")


@dataclass(frozen=True)
class PpoSetting:
    """Longest response, and the settings of ours that take turns with the peer."""

    name: str
    max_new_tokens: int
    ours: dict[str, dict[str, object]]
    size: Size = field(default_factory=Size)
    script: str = "ppo_peer.py"
    longest: str = "response_length"
    """What the peer calls the longest response."""


COMPILED: dict[str, object] = {"compute": {"compile_layers": True}}
ONE_TRUNK: dict[str, object] = {"share_trunk": True, "value_learning_rate": LEARNING_RATE}

SETTINGS = (
    PpoSetting(
        "responses up to 64",
        64,
        {
            "defaults": {},
            "one trunk": ONE_TRUNK,
            "compiled layers": COMPILED,
            "micro-batches of 512 tokens": {"micro_batch_tokens": 512},
        },
    ),
    PpoSetting(
        "responses up to 160",
        160,
        {"defaults": {}, "one trunk": ONE_TRUNK, "compiled layers": COMPILED},
    ),
)


def replay(peer: Path) -> str:
    """Replay one iteration on both sides.

    Returns:
        How far apart they are, in words.

    Raises:
        SystemExit: further than rounding.
    """
    theirs, ours = answers(peer, "ppo_peer.py", {})
    count = sum(len(row) for row in ours["advantages"])
    # The peer whitens with n - 1 where we divide by n; the loss is proportional to the advantages.
    ours["policy_loss"] *= ((count - 1) / count) ** 0.5
    return agreement(theirs, ours, ("kl", "score", "entropy", "policy_loss", "value_loss"))


def answers(peer: Path, script: str, options: dict[str, object], *, group: int = 1) -> list[dict]:
    """Replay one iteration on the peer's ``script`` and on ours with ``options``."""
    size = Size(hidden=64, layers=2, heads=2, vocabulary=512)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_work(folder, size, mean_length=MEAN_LENGTH)
        write_replay(folder, size, length=24, group=group)
        sides = ((peer, script, {}), (Path(sys.executable), "ppo_ours.py", options))
        return [_answer(*side, folder) for side in sides]


def agreement(theirs: dict, ours: dict, names: tuple[str, ...]) -> str:
    """Say how far apart the two are in ``names`` and in the advantages.

    Raises:
        SystemExit: further than rounding.
    """
    gaps = {name: abs(ours[name] - theirs[name]) for name in names}
    gaps["advantages"] = max(
        abs(one - other)
        for row, other_row in zip(ours["advantages"], theirs["advantages"], strict=True)
        for one, other in zip(row, other_row, strict=True)
    )
    if not max(gaps.values()) <= TOLERANCE:
        raise SystemExit(f"the two sides disagree on the same responses: {gaps}")
    return ", ".join(f"{name} {gap:.0e}" for name, gap in gaps.items())


def _answer(python: Path, script: str, options: dict[str, object], folder: Path) -> dict:
    run = subprocess.run(
        [str(python), str(HERE / script), "replay", str(folder), json.dumps(options)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    if run.returncode:
        raise SystemExit(run.stderr[-3_000:])
    return json.loads(run.stdout)


def compare(setting: PpoSetting, peer: Path, rounds: int, warm_up: int) -> dict[str, dict]:
    """Time one setting; name of ours to what it came to."""
    longest = {"max_new_tokens": setting.max_new_tokens}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_work(folder, setting.size, mean_length=MEAN_LENGTH)
        variants = [{**longest, **options} for options in setting.ours.values()]
        turns = Turns(peer, (setting.script, "ppo_ours.py"), "time", folder)
        with turns.start({setting.longest: setting.max_new_tokens}, variants):
            theirs, *ours = (answers[warm_up:] for answers in turns.take(warm_up + rounds))
            rates = turns.sides[-1].rates()
    found = {}
    for (name, options), answers in zip(setting.ours.items(), ours, strict=True):
        tokens, seconds = median(answers, "tokens"), median(answers, "cpu")
        shares = _shares(answers)
        least = floor(
            setting.size,
            tokens,
            rates,
            one_trunk="share_trunk" in options,
            group=options.get("responses_per_prompt", 1),
        )
        found[name] = {
            **ratio_and_memory(theirs, answers),
            "tokens_per_second": tokens / seconds,
            "peer_tokens_per_second": median(theirs, "tokens") / median(theirs, "cpu"),
            "our_shares": shares,
            "peer_shares": _shares(theirs),
            "over_floor": {part: shares[part] * seconds / getattr(least, part) for part in PARTS},
        }
    return found


def _shares(answers: list[Answer]) -> dict[str, float]:
    generate, score = median(answers, "generate"), median(answers, "score")
    return {"generate": generate, "score": score, "update": 1 - generate - score}


def measure(
    section: str,
    settings: Sequence[PpoSetting],
    usage: str | None,
    work: tuple[Callable[[Path], str], str],
    peer: Path,
) -> None:
    """Replay, then time what the command line asks for, and keep it in ``section``.

    ``work`` holds the replay and what both sides do, in words; ``peer`` is the default.
    """
    parser = argparse.ArgumentParser(
        description=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, default=peer, help="python with the peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1, help="iterations that do not count")
    parser.add_argument("--setting", action="append", help="only this one; may be repeated")
    parser.add_argument("--ours", action="append", help="only this of ours; may be repeated")
    arguments = parser.parse_args()
    replay_both, words = work
    replayed = "The same responses replayed into both, largest differences: "
    text = f"{words} {replayed}{replay_both(arguments.peer)}."
    keep(section, "note: work", {"text": text})
    for setting in chosen(settings, arguments.setting, arguments.ours):
        found = compare(setting, arguments.peer, arguments.rounds, arguments.warm_up)
        for name, values in found.items():
            keep(section, f"{setting.name} | {name}", values)


if __name__ == "__main__":
    described = f"64 prompts of 32 to 64 tokens, {EPOCHS} epochs of {MINIBATCHES} minibatches."
    measure("ppo", SETTINGS, __doc__, (replay, described), PEER)
