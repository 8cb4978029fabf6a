"""Run both sides in turns on the same work and say how they compare.

    python benchmarks/compare.py sft|reward|dpo [--peer PYTHON] [--rounds N] [--setting NAME ...]

Each setting starts both processes, warms them up with two steps, whose losses must agree to 1e-5,
then takes steps A B A B. Seconds are processor seconds of one thread: other work on the machine
changes wall time by much more than it changes these.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from settings import SETTINGS, Setting
from work import Size, floor_flops, write_models, write_rows

HERE = Path(__file__).parent
PEER = HERE.parent / ".peer" / "bin" / "python"
WARM_UP, LOSS_TOLERANCE = 2, 1e-5


class Side:
    """One process that answers."""

    def __init__(self, python: Path, script: str, stage: str, folder: Path, options: dict) -> None:
        command = [str(python), str(HERE / script), stage, str(folder), json.dumps(options)]
        threads = {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.log = (folder / f"{script}.log").open("w")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, **threads},
        )
        self.idle_mb = self._read()["idle_mb"]

    def ask(self, word: str) -> dict[str, float]:
        """Send a word and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.log.close()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(Path(self.log.name).read_text()[-3_000:])
        answer: dict[str, float] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Result:
    """What one setting came to."""

    setting: Setting
    ratios: list[float]
    wall_ratio: float
    ours_seconds: float
    peer_seconds: float
    tokens_per_second: float
    ours_mb: float
    peer_mb: float
    floor_ratio: float
    loss_gap: float

    def row(self) -> str:
        """One line of the table in RESULTS.md."""
        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}"
        return (
            f"| {self.setting.name} | **{statistics.median(self.ratios):.2f}x** ({spread}) "
            f"| {self.wall_ratio:.2f}x | {self.peer_seconds:.2f} s -> {self.ours_seconds:.2f} s "
            f"| {self.tokens_per_second:,.0f} | {self.peer_mb:,.0f} -> {self.ours_mb:,.0f} MB "
            f"(**{self.ours_mb / self.peer_mb:.2f}x**) | {self.floor_ratio:.2f}x "
            f"| {self.loss_gap:.0e} |"
        )


HEADER = (
    "| setting of the peer | times faster (spread) | by the wall clock | processor time of a step "
    "| our tokens/s | peak memory | time over the floor | loss differs by |\n"
    "|---|---|---|---|---|---|---|---|"
)


def compare(stage: str, setting: Setting, peer: Path, rounds: int) -> Result:
    """Compare one setting."""
    size = Size()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder, size)
        write_rows(folder, size)
        flops = floor_flops(folder, size, stage)
        theirs = Side(peer, "peer.py", stage, folder, setting.peer)
        ours = Side(Path(sys.executable), "ours.py", stage, folder, setting.ours)
        try:
            warm = [(theirs.ask("step"), ours.ask("step")) for _ in range(WARM_UP)]
            gap = max(abs(a["loss"] - b["loss"]) for a, b in warm)
            if setting.same_numbers and gap > LOSS_TOLERANCE:
                raise SystemExit(f"{setting.name}: losses differ by {gap}: {warm}")
            turns = [(theirs.ask("step"), ours.ask("step")) for _ in range(rounds)]
            rates = [ours.ask("rate")["rate"] for _ in range(5)]
        finally:
            theirs.close()
            ours.close()
    cpu = [statistics.median(turn[side]["cpu"] for turn in turns) for side in (0, 1)]
    wall = [statistics.median(turn[side]["wall"] for turn in turns) for side in (0, 1)]
    return Result(
        setting=setting,
        ratios=[a["cpu"] / b["cpu"] for a, b in turns],
        wall_ratio=wall[0] / wall[1],
        peer_seconds=cpu[0],
        ours_seconds=cpu[1],
        tokens_per_second=turns[0][1]["tokens"] / cpu[1],
        ours_mb=turns[-1][1]["peak_mb"],
        peer_mb=turns[-1][0]["peak_mb"],
        floor_ratio=cpu[1] / (flops / max(rates)),
        loss_gap=gap,
    )


def write_section(stage: str, lines: list[str]) -> None:
    """Replace the stage's section of RESULTS.md."""
    path = HERE / "RESULTS.md"
    text = path.read_text() if path.exists() else "# Results\n"
    start, end = f"<!-- {stage} -->", f"<!-- /{stage} -->"
    block = "\n".join([start, *lines, end])
    if start in text:
        text = text[: text.index(start)] + block + text[text.index(end) + len(end) :]
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    path.write_text(text)


def machine() -> str:
    """Say what this was measured on."""
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    model = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{model}, {os.cpu_count()} cores, one thread a side, float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=sorted(SETTINGS))
    parser.add_argument("--peer", type=Path, default=PEER, help="python with TRL")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--setting", action="append", help="only this one; may be repeated")
    arguments = parser.parse_args()
    before, rows = os.getloadavg()[0], []
    for setting in SETTINGS[arguments.stage]:
        if arguments.setting is None or setting.name in arguments.setting:
            result = compare(arguments.stage, setting, arguments.peer, arguments.rounds)
            print(result.row(), flush=True)
            rows.append(result.row())
            write_section(arguments.stage, section(arguments, rows, before))


def section(arguments: argparse.Namespace, rows: list[str], load_before: float) -> list[str]:
    """Lines of the stage's section: the command, the machine and its load, the table."""
    command = f"python benchmarks/compare.py {arguments.stage} --rounds {arguments.rounds}"
    load = f"load average {load_before:.1f} before, {os.getloadavg()[0]:.1f} after"
    note = f"`{command}` on {machine()}; {load}."
    return [f"## {arguments.stage}", "", note, "", HEADER, *rows]


if __name__ == "__main__":
    main()
