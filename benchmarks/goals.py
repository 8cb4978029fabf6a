"""The goals, and which of them the measurements reach."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

PLAIN = "defaults"


def speed(values: dict) -> float:
    """How many times faster than the peer, median of the rounds."""
    return statistics.median(values["ratios"])


def memory(values: dict) -> float:
    """Peak memory as a share of the peer's."""
    return values["our_mb"] / values["peer_mb"]


def update_over_floor(values: dict) -> float:
    """Time of the update over the time its FLOPs need."""
    return values["over_floor"]["update"]


@dataclass(frozen=True)
class Goal:
    """A bound on one number of one measured row."""

    what: str
    section: str
    row: str
    read: Callable[[dict], float]
    bound: float
    at_least: bool = True

    def cells(self, found: dict[str, dict]) -> list[str]:
        """Return what was asked, what was found, and the verdict."""
        sign = ">=" if self.at_least else "<="
        asked = [self.what, self.row.replace(" | ", "; ours: "), f"{sign} {self.bound:g}x"]
        values = found.get(self.section, {}).get("rows", {}).get(self.row)
        if values is None:
            return [*asked, "not measured", ""]
        value = self.read(values)
        reached = value >= self.bound if self.at_least else value <= self.bound
        return [*asked, f"{value:.2f}x", "reached" if reached else "**not reached**"]


COMPILED = "compiled layers"
OWN_WAY, TWO_THREADS = "micro-batches of 8", "micro-batches of 8, two threads"
GROUPED_PAIRS = "grouped by length, 8 x 4"


def _supervised(name: str, section: str, best: str, bounds: tuple[float, float, float]) -> list:
    own_way, at_best, share = bounds
    return [
        Goal(f"{name}, time", section, f"{OWN_WAY} | {PLAIN}", speed, own_way),
        Goal(f"{name}, wall time", section, f"{TWO_THREADS} | {PLAIN}", speed, own_way),
        Goal(f"{name}, time, TRL's best setting", section, f"{best} | {PLAIN}", speed, at_best),
        Goal(f"{name}, time, TRL's best setting", section, f"{best} | {COMPILED}", speed, at_best),
        Goal(f"{name}, memory", section, f"{OWN_WAY} | {PLAIN}", memory, share, at_least=False),
    ]


SMALL_PPO = "micro-batches of 512 tokens"
SHORT, LONG = "responses up to 64", "responses up to 160"
GOALS = [
    *_supervised("SFT", "sft", "grouped by length, 8 x 8", (3.3, 2.0, 0.65)),
    *_supervised("reward model", "reward", GROUPED_PAIRS, (3.2, 2.4, 0.7)),
    *_supervised("DPO", "dpo", f"reference computed before, {GROUPED_PAIRS}", (4.0, 2.9, 0.7)),
    Goal("PPO, time", "ppo", f"{SHORT} | {PLAIN}", speed, 2.5),
    Goal("PPO, time", "ppo", f"{SHORT} | {COMPILED}", speed, 2.5),
    Goal("PPO, time", "ppo", f"{SHORT} | {SMALL_PPO}", speed, 2.5),
    Goal("PPO, time", "ppo", f"{LONG} | {PLAIN}", speed, 4.0),
    Goal("PPO, time", "ppo", f"{LONG} | {COMPILED}", speed, 4.0),
    Goal("PPO, memory", "ppo", f"{SHORT} | {PLAIN}", memory, 0.5, at_least=False),
    Goal("PPO, memory", "ppo", f"{SHORT} | {SMALL_PPO}", memory, 0.5, at_least=False),
    Goal("PPO, memory", "ppo", f"{LONG} | {PLAIN}", memory, 0.5, at_least=False),
    Goal("PPO, one trunk, time", "ppo", f"{SHORT} | one trunk", speed, 4.5),
    Goal("PPO, one trunk, time", "ppo", f"{LONG} | one trunk", speed, 5.5),
    Goal("PPO, one trunk, memory", "ppo", f"{SHORT} | one trunk", memory, 0.5, at_least=False),
    Goal("PPO update over the floor", "ppo", f"{SHORT} | {PLAIN}", update_over_floor, 1.4, False),
    Goal("PPO update over the floor", "ppo", f"{LONG} | {PLAIN}", update_over_floor, 1.4, False),
    Goal("GRPO, time", "grpo", f"{SHORT} | {PLAIN}", speed, 1.0),
    Goal("GRPO, time", "grpo", f"{LONG} | {PLAIN}", speed, 1.0),
    Goal("two processes on two cores against two threads", "processes_wall", "SFT", speed, 1.0),
    Goal("two processes on two cores against two threads", "processes_wall", "PPO", speed, 1.0),
    Goal(
        "head memory, vocabulary 131,072",
        "head",
        "chunk by chunk",
        lambda v: v["share"],
        0.25,
        False,
    ),
]


def goal_table(found: dict[str, dict]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return columns and rows of the table of goals."""
    columns = ("goal", "measured on", "bound", "found", "")
    return columns, [goal.cells(found) for goal in GOALS]
