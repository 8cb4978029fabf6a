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
    from compare import write_section

    results = {}
    for kind in ("whole", "chunked"):
        output = subprocess.check_output([sys.executable, __file__, kind], text=True)
        results[kind] = json.loads(output)
    whole, chunked = results["whole"], results["chunked"]
    line = (
        f"{TOKENS:,} tokens, hidden {HIDDEN}, vocabulary {VOCABULARY:,}, forward and backward: "
        f"{whole['mb']:,.0f} -> {chunked['mb']:,.0f} MB (**{chunked['mb'] / whole['mb']:.2f}x**), "
        f"{whole['cpu']:.2f} -> {chunked['cpu']:.2f} s of processor time; losses "
        f"{whole['loss']:.4f} and {chunked['loss']:.4f}."
    )
    print(line)
    write_section("head", ["## Output head", "", "`python benchmarks/head.py`", "", line])


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
