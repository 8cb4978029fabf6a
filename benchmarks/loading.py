"""Memory and processor time of reading pairs to tokens, and of all that comes before a first step.

    .venv/bin/python benchmarks/loading.py --pairs 200000 1000000 --folder /tmp/loading-benchmark
    .venv/bin/python benchmarks/loading.py --pairs 200000 --code ../earlier-checkout

Writes the same prepared pairs for the same seed: 4 to 12 words a prompt, shared by about three
pairs, and 4 to 20 a response. A process of its own reads each file as the reward model's stage
does (parse, check, render, tokenise, keep), then identifies the data and lays out the batches of
one epoch. Memory is what the process has above what it had with libraries and tokenizer loaded:
the peak of all (``ru_maxrss``), and that of its heap, which leaves out mapped pages that the system
takes back when it needs them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("pairs", "file_mb", "phase", "seconds", "peak_mb", "heap_mb", "heap_bytes_a_pair")


def write_pairs(path: Path, num_pairs: int, seed: int) -> None:
    from prepare import Texts

    texts = Texts(seed)
    prompts = [texts.text(4, 12) for _ in range(max(num_pairs // 3, 1))]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        for number in range(num_pairs):
            row = {
                "comparison_id": f"synthetic-{number}",
                "prompt": [{"role": "user", "content": texts.rng.choice(prompts)}],
                "chosen": texts.text(4, 20),
                "rejected": texts.text(4, 20),
                "agreement": 1.0,
                "num_votes": 3,
                "source": "synthetic",
            }
            file.write(json.dumps(row) + "\n")
    temporary.replace(path)


class Memory:
    """Peaks since the last phase; the heap is looked at fifty times a second."""

    def __init__(self) -> None:
        self.base_peak, self.base_heap = peak_megabytes(), heap_megabytes()
        self.heap = self.base_heap
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.heap = max(self.heap, heap_megabytes())
            time.sleep(0.02)

    def phase(self, name: str, started: float, num_pairs: int) -> dict[str, object]:
        heap = max(self.heap, heap_megabytes()) - self.base_heap
        self.heap = 0.0
        return {
            "phase": name,
            "seconds": round(time.process_time() - started, 1),
            "peak_mb": round(peak_megabytes() - self.base_peak),
            "heap_mb": round(heap),
            "heap_bytes_a_pair": round(heap * 1e6 / num_pairs),
        }


def peak_megabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def heap_megabytes() -> float:
    """Return the resident memory that no file stands behind; Linux says it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1_024 / 1e6


def measure(path: Path, num_pairs: int) -> None:
    """Print one JSON line a phase."""
    from rlhf_core.config import PipelineConfig, RewardConfig
    from rlhf_core.schema import DatasetRef
    from rlhf_core.stages.models.examples import load_pairs
    from rlhf_core.stages.models.renderers import model_renderer
    from rlhf_core.trainers.preference import pair_rows, plan_pair_batches
    from rlhf_core.trainers.state import run_fingerprint

    base = ROOT / "data" / "base"
    config = PipelineConfig.model_validate(
        {
            "model": {"base": str(base), "max_length": 4_096},
            "data": {"preferences": {"path": "unused.jsonl"}},
            "policy": {"algorithm": "dpo"},
            "gates": {"sft": [], "reward": [], "policy": []},
        }
    )
    renderer = model_renderer(base)
    source = DatasetRef(
        path=path, sha256="0" * 64, num_rows=num_pairs, dvc_md5="0" * 32, git_revision=None
    )
    with TemporaryDirectory(dir=path.parent) as folder:
        memory, started = Memory(), time.process_time()
        pairs = load_pairs(config, renderer, Path(folder), source)
        print(json.dumps(memory.phase("read to tokens", started, num_pairs)), flush=True)
        started = time.process_time()
        fingerprint = run_fingerprint(RewardConfig(), [], pair_rows(pairs), seed=0)
        plan = plan_pair_batches(pairs, batch_size=64, num_epochs=1, seed=0)
        phase = memory.phase("identify and plan", started, num_pairs)
        print(json.dumps(phase | {"fingerprint": fingerprint[:16], "batches": len(plan)}))


def main() -> None:
    """Write the pairs where they are missing, measure each file in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[200_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/loading-benchmark"))
    parser.add_argument("--code", type=Path, default=ROOT, help="checkout that is measured")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.pairs[0])
        return
    print("".join(f"{name:>18}" for name in SHOWN))
    for num_pairs in options.pairs:
        path = options.folder / f"pairs-{num_pairs}-{options.seed}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_pairs(path, num_pairs, options.seed)
        command = [sys.executable, __file__, "--measure", str(path), "--pairs", str(num_pairs)]
        paths = os.pathsep.join([str(options.code.resolve()), str(ROOT)])
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True
        )
        for line in done.stdout.decode().splitlines():
            shown = {
                "pairs": f"{num_pairs:,}",
                "file_mb": round(path.stat().st_size / 1e6),
                **json.loads(line),
            }
            print("".join(f"{shown.pop(name)!s:>18}" for name in SHOWN), *shown.values())


if __name__ == "__main__":
    main()
