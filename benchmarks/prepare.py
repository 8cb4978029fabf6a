"""Speed and memory of `rlhf prepare` on many long pairs, with every check switched on.

    .venv/bin/python benchmarks/prepare.py --pairs 200000 --folder /tmp/prepare-benchmark

Writes the same comparisons for the same seed: 50 to 300 words a response, three to five votes of
400 annotators, 1 row in 50 damaged, prompts shared by about three pairs. Then one preparation with
near duplicates, languages, personal data, contamination, tokens, Dawid-Skene and all suites.
What languages and personal data take is in rows of its own; ``--without`` leaves them out.

Seconds are the processor's, those of all threads; peak memory is the process's, libraries included:
of each step by itself where Linux lets a peak be forgotten, and of all so far elsewhere.
"""

import argparse
import json
import random
import resource
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.cleaning import rules
from rlhf_core.stages import prepare
from rlhf_core.stages.preparation import build as prepare_build

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "the of and to a in is that it for was on are as with they be at one have this from by not but"
    " what all were when we there can an your which their if do will each about how up out them"
    " then she many some so these would other into has more her two like him see time could no make"
    " than first been its who now people my made over did down only way find use may water long"
)
PARTS = (
    "light house water hand work book land stone road night day fire head wood farm town home wind"
    " rain sun snow mill bridge foot field garden market ship sand salt bread apple winter summer"
    " morning green black white long high round under over side back board line master keeper maker"
)
PHASES = {
    "_fingerprint": "digest of inputs",
    "_read": "read, rules, tokens, signatures",
    "_validate_raw": "raw suite",
    "_decide": "votes, repeats, near duplicates",
    "_write": "write pairs, demonstrations, prompts",
    "_validate_prepared": "prepared suites",
    "describe_agreement": "agreement, annotators",
    "measure": "biases, prompt shift",
    "draw_pictures": "pictures",
    "write_manifest": "manifest",
}


CHECKS = {
    "languages": ("surely_allowed", "other_language"),
    "personal_data": ("find_personal_data",),
}
"""Checks timed apart: functions of ``cleaning/rules.py``."""


class Texts:
    """English to a detector of languages: common words, and compounds that fall as 1/rank."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        nouns = [a + b for a in PARTS.split() for b in PARTS.split() if a != b]
        self.rng.shuffle(nouns)
        self.words = [*SMALL.split(), *nouns]
        self.weights = list(accumulate(1 / rank for rank in range(8, len(self.words) + 8)))

    def text(self, low: int, high: int) -> str:
        words = self.rng.choices(
            self.words, cum_weights=self.weights, k=self.rng.randint(low, high)
        )
        return " ".join(words) + "."


def comparisons(num_pairs: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield rows; a better answer is a little longer, annotators err each at their own rate."""
    texts = Texts(seed)
    rng = texts.rng
    prompts = [texts.text(8, 40) for _ in range(max(num_pairs // 3, 200))]
    errors = [rng.uniform(0.05, 0.45) for _ in range(400)]
    earlier: list[dict[str, Any]] = []
    for number in range(num_pairs):
        better = rng.choice("ab")
        lengths = {side: (80, 300) if side == better else (50, 270) for side in "ab"}
        voters = rng.sample(range(len(errors)), rng.randint(3, 5))
        row = {
            "comparison_id": str(number),
            "prompt": rng.choice(prompts),
            "response_a": texts.text(*lengths["a"]),
            "response_b": texts.text(*lengths["b"]),
            "votes": [
                {
                    "annotator": f"w{voter}",
                    "choice": better if rng.random() > errors[voter] else "ba"[better == "b"],
                    "seconds": round(rng.uniform(5, 60), 1),
                }
                for voter in voters
            ],
        }
        if earlier and rng.random() < 0.02:
            row |= damage(rng, rng.choice(earlier))
        elif len(earlier) < 500:
            earlier.append(row)
        yield row


def damage(rng: random.Random, other: dict[str, Any]) -> dict[str, Any]:
    """Return columns that make a row useless in one of six ways."""
    return rng.choice(
        [
            {"prompt": other["prompt"], "response_a": " "},
            {"response_a": "the same of it", "response_b": "the same of it"},
            {"response_b": other["response_b"] + " Write to jane@mail.example.org."},
            {key: other[key] for key in ("prompt", "response_a", "response_b", "votes")},
            {
                "prompt": other["prompt"],
                "response_a": other["response_a"] + " Indeed.",
                "response_b": other["response_b"],
            },
            {"votes": []},
        ]
    )


def write_inputs(folder: Path, num_pairs: int, seed: int) -> None:
    """Write comparisons, held-out and production prompts, and a benchmark to be kept out."""
    texts = Texts(seed + 1)
    for name, size in (("heldout", 500), ("production", 3_000)):
        rows = ({"prompt": f"{texts.text(8, 40)} {i}"} for i in range(size))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bench.txt").write_text("".join(texts.text(15, 40) + "\n" for _ in range(1_000)))
    with (folder / "pairs.jsonl").open("w") as file:
        for row in comparisons(num_pairs, seed):
            file.write(json.dumps(row) + "\n")


def configuration(folder: Path, without: Collection[str]) -> PipelineConfig:
    """Return settings with every check on but those of ``CHECKS`` that are left out."""
    apart = {"languages": ["en"], "personal_data": ["email", "phone", "secret"]}
    return PipelineConfig.model_validate(
        {
            "model": {"base": str(ROOT / "data" / "base"), "max_length": 4_096},
            "policy": {"algorithm": "ppo"},
            "gates": {"sft": [], "reward": [], "policy": []},
            "data": {
                "preferences": {"path": str(folder / "pairs.jsonl")},
                "prompts": {
                    "heldout_path": str(folder / "heldout.jsonl"),
                    "production_path": str(folder / "production.jsonl"),
                },
                "votes": {"method": "dawid_skene"},
                "cleaning": {
                    "near_duplicates": 0.8,
                    "contamination": [str(folder / "bench.txt")],
                    **{name: found for name, found in apart.items() if name not in without},
                },
                "output": str(folder / "prepared"),
            },
        }
    )


def time_phases() -> list[tuple[str, float, float]]:
    """Let the stage's steps note their processor seconds and their peak memory."""
    notes: list[tuple[str, float, float]] = []

    def timed(function: Any, phase: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            notes.append(("between", 0.0, peak_gigabytes()))
            forget_peak()
            start = time.process_time()
            result = function(*args, **kwargs)
            notes.append((phase, time.process_time() - start, peak_gigabytes()))
            return result

        return call

    for name, phase in PHASES.items():
        module = prepare if hasattr(prepare, name) else prepare_build
        setattr(module, name, timed(getattr(module, name), phase))
    return notes


def time_checks(checks: Collection[str]) -> dict[str, float]:
    """Let the checks that are timed apart add up their processor seconds: it costs some."""
    taken = dict.fromkeys(checks, 0.0)

    def timed(function: Any, check: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                taken[check] += time.thread_time() - start

        return call

    for check in checks:
        for name in CHECKS[check]:
            setattr(rules, name, timed(getattr(rules, name), check))
    return taken


def peak_gigabytes() -> float:
    """Return the largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def forget_peak() -> None:
    """Let the largest resident size begin anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def written_inputs(options: argparse.Namespace) -> Path:
    """Return the folder with the inputs, written where they are missing, without older outputs."""
    folder: Path = options.folder / f"{options.pairs}-{options.seed}"
    done = folder / "written"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_inputs(folder, options.pairs, options.seed)
        done.touch()
    for before in folder.glob("prepared*"):
        shutil.rmtree(before)
    return folder


def main() -> None:
    """Write the inputs where they are missing, prepare once, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/prepare-benchmark"))
    parser.add_argument("--without", nargs="*", choices=tuple(CHECKS), default=())
    options = parser.parse_args()
    folder = written_inputs(options)
    notes, checks = time_phases(), time_checks(CHECKS.keys() - options.without)
    size = (folder / "pairs.jsonl").stat().st_size
    before, start, cpu = peak_gigabytes(), time.perf_counter(), time.process_time()
    splits = prepare.prepare_data(configuration(folder, options.without))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    report = json.loads(splits.report.read_text())
    apart, largest = sum(checks.values()), max(peak for _, _, peak in notes)
    print(f"{options.pairs:,} pairs, {size / 1e6:,.0f} MB; {before:.2f} GB before the start\n")
    print(f"{'phase':<42}{'seconds':>9}{'rows/s':>10}{'peak GB':>9}")
    for phase, took, peak in [
        *(note for note in notes if note[0] != "between"),
        *((f"of these {check}", took, 0.0) for check, took in checks.items()),
        ("all", cpu, max(largest, peak_gigabytes())),
        ("all but languages and personal data", cpu - apart, 0.0),
    ]:
        shown = f"{peak:>9.2f}" if peak else ""
        print(f"{phase:<42}{took:>9.1f}{options.pairs / max(took, 1e-9):>10,.0f}{shown}")
    print(f"\n{seconds:.1f} s by the clock; dataset {splits.directory.name}")
    print(json.dumps(report["inputs"]["preferences"]))


if __name__ == "__main__":
    main()
