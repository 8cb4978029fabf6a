"""Memory of each process, and seconds of a step: one, several with whole models, divided layers.

    .venv/bin/python benchmarks/sharding.py                      # 91M weights, 2 processes, CPU
    .venv/bin/python benchmarks/sharding.py --processes 4 --hidden 512 --layers 8

Bytes of weights, gradients and moments are those of the tensors a process keeps between two passes;
the resident size is the whole process, libraries and activations included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
import torch

VOCABULARY, TOKENS, STEPS = 8_192, 128, 3
MODES = ("one", "none", "layers")
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""Else glibc keeps what was freed, and the resident size is that of the largest moment."""
COLUMNS = ("weights_mb", "gradients_mb", "moments_mb", "resident_mb", "peak_mb", "step_s", "loss")


def write_model(folder: Path, hidden: int, layers: int) -> int:
    """Write a random tied Llama; return its number of weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers, num_attention_heads=hidden // 64, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def measure(folder: Path, rank: int, processes: int, shard: str) -> None:
    """Train some steps as one of the processes and print what it holds."""
    import worker

    from rlhf_core.config import ComputeConfig, OptimizerConfig
    from rlhf_core.models import load_causal, prepare_training
    from rlhf_core.models.sharding import own_part
    from rlhf_core.tokenization import TokenizedExample
    from rlhf_core.trainers.loop import Optimization
    from rlhf_core.trainers.sft import accumulate_nll

    torch.set_num_threads(1)
    if processes > 1:
        meeting = f"file://{folder / f'meeting-{shard}'}"
        torch.distributed.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=processes
        )
    model = prepare_training(load_causal(folder), ComputeConfig(), seed=0)
    settings = OptimizerConfig(learning_rate=1e-5)
    optimization = Optimization(model, settings, total_steps=STEPS, shard=shard)  # type: ignore[arg-type]
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (2 * processes, TOKENS)).astype(np.int32)
    examples = [TokenizedExample(str(row), each[:8], each[8:]) for row, each in enumerate(ids)]
    for _ in range(STEPS):
        started = time.perf_counter()
        loss, _ = accumulate_nll(model, examples, budget=TOKENS)
        gradients = [weight.grad for weight in optimization.parameters if weight.grad is not None]
        sizes = {"gradients_mb": megabytes(map(own_part, gradients))}
        optimization.apply(loss)
        sizes["step_s"] = time.perf_counter() - started
    moments = [value for entry in optimization.optimizer.state.values() for value in entry.values()]
    sizes |= {
        "weights_mb": megabytes(map(own_part, model.parameters())),
        "moments_mb": megabytes(map(own_part, moments)),
        "resident_mb": psutil.Process().memory_info().rss / 1e6,
        "peak_mb": worker.peak_megabytes(),
        "loss": loss,
    }
    print(json.dumps(sizes), flush=True)
    if processes > 1:
        torch.distributed.destroy_process_group()


def megabytes(tensors: Iterable[torch.Tensor]) -> float:
    """Bytes of the tensors, in millions."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rank", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        folder, rank, processes, shard = options.rank
        return measure(Path(folder), int(rank), int(processes), shard)
    with tempfile.TemporaryDirectory() as folder:
        count = write_model(Path(folder), options.hidden, options.layers)
        print(f"{count:,} weights, {TOKENS} tokens a pass, float32, gloo\n")
        print(f"| processes | shard | rank | {' | '.join(COLUMNS)} |\n|{'---|' * 10}")
        for mode in MODES:
            processes, shard = (1, "none") if mode == "one" else (options.processes, mode)
            ranks = [
                subprocess.Popen(
                    [sys.executable, __file__, "--rank", folder, str(rank), str(processes), shard],
                    stdout=subprocess.PIPE, text=True, env={**os.environ, **GIVE_BACK},
                )
                for rank in range(processes)
            ]  # fmt: skip
            for rank, process in enumerate(ranks):
                said = json.loads(process.communicate()[0].splitlines()[-1])
                row = " | ".join(f"{said[name]:,.{2 if name in ('step_s', 'loss') else 0}f}"
                                 for name in COLUMNS)  # fmt: skip
                print(f"| {processes} | {shard} | {rank} | {row} |", flush=True)


if __name__ == "__main__":
    main()
