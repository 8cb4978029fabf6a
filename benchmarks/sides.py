"""The sides of a comparison as this process sees them: children that take a step when told to."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
Answer = dict[str, float]


def environment(threads: int = 1) -> dict[str, str]:
    """Return the environment of a side: so many threads, nothing fetched."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }


class Side:
    """One process that answers."""

    def __init__(
        self,
        python: Path,
        script: str,
        stage: str,
        folder: Path,
        options: dict[str, object],
        env: dict[str, str] | None = None,
    ) -> None:
        command = [str(python), str(HERE / script), stage, str(folder), json.dumps(options)]
        self.log = (folder / f"{script}.log").open("a")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=env or environment(),
        )
        self.idle_mb = self._read()["idle_mb"]

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def ask(self, word: str) -> Answer:
        """Send a word and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._read()

    def rates(self) -> Answer:
        """Return the best of a few measurements of this machine's matmul rate and bandwidth."""
        found = [self.ask("rate") for _ in range(5)]
        return {name: max(answer[name] for answer in found) for name in found[0]}

    def _read(self) -> Answer:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(Path(self.log.name).read_text()[-3_000:])
        answer: Answer = json.loads(line)
        return answer


class Turns:
    """The peer and every variant of ours, started on one folder, asked one after the other."""

    def __init__(self, peer: Path, scripts: tuple[str, str], stage: str, folder: Path) -> None:
        self.peer, self.scripts, self.stage, self.folder = peer, scripts, stage, folder
        self.stack = ExitStack()
        self.sides: list[Side] = []

    def start(
        self,
        peer_options: dict[str, object],
        variants: Sequence[dict[str, object]],
        threads: int = 1,
    ) -> "Turns":
        """Start all processes, each with so many threads."""
        started = [(self.peer, self.scripts[0], peer_options)]
        started += [(Path(sys.executable), self.scripts[1], options) for options in variants]
        env = environment(threads)
        for python, script, options in started:
            side = Side(python, script, self.stage, self.folder, options, env)
            self.sides.append(self.stack.enter_context(side))
        return self

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def take(self, rounds: int) -> list[list[Answer]]:
        """Let each side take a step, ``rounds`` times; answers of each side, the peer's first."""
        turns = [[side.ask("step") for side in self.sides] for _ in range(rounds)]
        return [list(answers) for answers in zip(*turns, strict=True)]


def machine(threads: int = 1) -> str:
    """Say what this was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    flags = fields.get("flags", "").split()
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_tile": "AMX"}
    units = ", ".join(name for flag, name in known.items() if flag in flags)
    model = fields.get("model name", platform.processor())
    cores = f"{os.cpu_count()} cores ({units})"
    each = "one thread" if threads == 1 else f"{threads} threads"
    return f"{model}, {cores}, torch {version('torch')}, {each} a side, float32"


def load() -> float:
    """Return how many processes want a core right now, averaged over a minute."""
    return round(os.getloadavg()[0], 1)
