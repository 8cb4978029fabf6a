"""Memory of the output head at a large vocabulary: ours, chunk by chunk, against whole logits.

python benchmarks/head.py
"""

import json
import subprocess
import sys

import torch
import worker

TOKENS, HIDDEN, VOCABULARY = 2_048, 64, 131_072


def measure(kind: str) -> None:
    """Print the megabytes that one forward and backward pass of the head adds."""
    from rlhf_core.functional.head import chunked_nll_sum

    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    before, clock = worker.peak_megabytes(), worker.Clock()
    if kind == "whole":
        loss = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    else:
        loss = chunked_nll_sum(hidden, weight, None, targets)
    loss.backward()
    added = worker.peak_megabytes() - before
    print(json.dumps({"mb": added, "loss": loss.item(), **clock.read()}))


def main() -> None:
    from results import keep

    results = {}
    for kind in ("whole", "chunked"):
        output = subprocess.check_output([sys.executable, __file__, kind], text=True)
        results[kind] = json.loads(output)
    whole, chunked = results["whole"], results["chunked"]
    if not abs(whole["loss"] / chunked["loss"] - 1) < 1e-5:
        raise SystemExit(f"the two losses differ: {results}")
    keep("head", "whole", whole)
    keep("head", "chunk by chunk", {**chunked, "share": chunked["mb"] / whole["mb"]})
    size = f"{TOKENS:,} tokens, hidden {HIDDEN}, vocabulary {VOCABULARY:,}, forward and backward"
    text = f"{size}. Chunk by chunk: **{chunked['mb'] / whole['mb']:.2f}x** the memory."
    keep("head", "note: size", {"text": text})


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
