"""Activations as they are counted before a model is loaded, against the peak of a real step.

    python benchmarks/step_memory.py MODEL [MODEL ...]

Each case runs in a process of its own, for the peak of a process never falls.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from rlhf_core.config import ComputeConfig
from rlhf_core.models import load_causal, nll_sum
from rlhf_core.models.compute import prepare_training
from rlhf_core.models.step_memory import step_memory
from rlhf_core.tokenization import TokenBatch

CASES = {
    "float32": ComputeConfig(),
    "bfloat16": ComputeConfig(precision="bfloat16"),
    "float32, recomputed": ComputeConfig(gradient_checkpointing=True),
}
LENGTH = 128


def main() -> None:
    """Print a row for each model and case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="folders in save_pretrained layout")
    parser.add_argument("--tokens", type=int, default=16_384, help="of the step")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(row(given.models[0], given.case, given.tokens))
        return
    print(
        "| model | case | counted, MB | measured, MB | measured / counted |\n|---|---|---|---|---|"
    )
    for model in given.models:
        for case in CASES:
            command = [sys.executable, __file__, str(model), "--case", case]
            subprocess.run([*command, "--tokens", str(given.tokens)], check=True)


def row(folder: Path, case: str, num_tokens: int) -> str:
    """Measure one case: how far a step's peak is above what was there before it."""
    counted = step_memory(folder, CASES[case])
    if counted is None:
        raise SystemExit(f"{folder}: activations are not known")
    model = prepare_training(load_causal(folder), CASES[case], seed=0)
    nll_sum(model, batch_of(LENGTH)).backward()  # gradients are there from now on
    before = psutil.Process().memory_info().rss
    nll_sum(model, batch_of(num_tokens)).backward()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 - before
    expected = counted.at_once + counted.per_token * num_tokens
    name, ratio = folder.resolve().name, peak / expected
    return f"| {name} | {case} | {expected / 1e6:,.0f} | {peak / 1e6:,.0f} | {ratio:.2f} |"


def batch_of(num_tokens: int) -> TokenBatch:
    """Sequences of one length whose tokens all count but the first."""
    rows = num_tokens // LENGTH
    counts = torch.arange(LENGTH) > 0
    return TokenBatch(
        input_ids=torch.zeros(rows * LENGTH, dtype=torch.int64),
        position_ids=torch.arange(LENGTH).repeat(rows),
        loss_mask=counts.repeat(rows),
        cu_seqlens=torch.arange(0, rows * LENGTH + 1, LENGTH),
        parents=torch.full((rows,), -1),
    )


if __name__ == "__main__":
    main()
