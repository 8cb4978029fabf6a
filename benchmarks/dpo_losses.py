"""DPO's family against TRL's own losses: one model, one reference, one batch of pairs.

    .venv/bin/python benchmarks/dpo_losses.py [--peer .peer/bin/python]

Prints both sides of every loss and fails (exit 1) where they differ by more than 1e-5, or than that
share of a loss above 1.
TRL's DPO, robust DPO, IPO and per-token DPO are losses of its ``DPOTrainer`` on the
batch, KTO that of its ``KTOTrainer`` on the pairs taken apart, each prompt with the responses of
the pair before it for the baseline, and on responses that are no pairs, more of them good than bad;
SimPO and ORPO are methods of its experimental trainers, on
log-probabilities per token.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM
from work import Size, read_rows, unpaired_rows, write_models, write_rows

sys.path.insert(0, str(Path(__file__).parents[1]))

from rlhf_core.config import DpoConfig
from rlhf_core.models import load_causal
from rlhf_core.tokenization import TokenizedPair, TokenizedUnpaired
from rlhf_core.tokenization.examples import as_token_ids
from rlhf_core.trainers.dpo import DpoObjective, mismatched
from rlhf_core.trainers.kto import KtoObjective, mismatched_examples

TOLERANCE = 1e-5
HERE = Path(__file__).parent
CASES: list[dict[str, Any]] = [
    {"title": "DPO", "ours": {"loss": "dpo"}, "peer": {"loss_type": ["sigmoid"]}},
    {
        "title": "robust DPO",
        "ours": {"loss": "robust", "label_smoothing": 0.2},
        "peer": {"loss_type": ["robust"], "label_smoothing": 0.2},
    },
    {"title": "IPO", "ours": {"loss": "ipo"}, "peer": {"loss_type": ["ipo"]}},
    {
        "title": "DPO per token",
        "ours": {"loss": "dpo", "length_normalized": True},
        "peer": {"loss_type": ["sigmoid_norm"]},
    },
    {
        "title": "KTO",
        "ours": {"loss": "kto", "desirable_weight": 1.5, "undesirable_weight": 0.5},
        "peer": {"name": "kto", "desirable_weight": 1.5, "undesirable_weight": 0.5},
    },
    {
        "title": "KTO, no pairs",
        "ours": {"loss": "kto", "desirable_weight": 1.5, "undesirable_weight": 0.5},
        "peer": {"name": "unpaired", "desirable_weight": 1.5, "undesirable_weight": 0.5},
    },
    {
        "title": "SimPO",
        "ours": {"loss": "simpo", "target_margin": 0.5},
        "peer": {"name": "simpo", "loss_type": "simpo", "simpo_gamma": 0.5},
    },
    {"title": "ORPO", "ours": {"loss": "orpo"}, "peer": {"name": "orpo"}},
]
BETA = 0.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", default=str(HERE.parent / ".peer/bin/python"))
    peer = parser.parse_args().peer
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), Size(hidden=48, layers=2, heads=2, vocabulary=512, sequences=16)
        write_models(folder, size)
        write_reference(folder)
        write_rows(folder, size)
        ours = {
            case["title"]: (our_loss_without_pairs if is_unpaired(case) else our_loss)(
                folder, case["ours"]
            )
            for case in CASES
        }
        cases = [{**case, "peer": {**case["peer"], "beta": BETA}} for case in CASES]
        answer = subprocess.run(
            [peer, HERE / "dpo_losses_peer.py", folder, json.dumps(cases)],
            stdout=subprocess.PIPE,
            check=True,
        )
    theirs = json.loads(answer.stdout)
    return show(ours, theirs["losses"], theirs["versions"])


def write_reference(folder: Path) -> None:
    """Write a reference unlike the policy, so that no loss is at its value for equal models."""
    model = LlamaForCausalLM.from_pretrained(folder / "causal")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder / "reference")


def our_loss(folder: Path, options: dict[str, Any]) -> float:
    """Mean loss of the pairs, as the trainer computes it."""
    pairs = [
        TokenizedPair("", *(as_token_ids(row[name]) for name in row))
        for row in read_rows(folder, "pairs")
    ]
    objective = DpoObjective(
        load_causal(folder / "causal"), DpoConfig.model_validate({"beta": BETA, **options})
    )
    others = mismatched(pairs)
    with torch.no_grad():
        reference = objective.reference_logprobs(load_causal(folder / "reference"), pairs, others)
    return float(objective.measure(pairs, reference, others).losses.double().mean())


def is_unpaired(case: dict[str, Any]) -> bool:
    return bool(case["peer"].get("name") == "unpaired")


def our_loss_without_pairs(folder: Path, options: dict[str, Any]) -> float:
    """Mean loss of one response of each pair, two thirds of them good."""
    examples = [
        TokenizedUnpaired("", as_token_ids(prompt), as_token_ids(response), label)
        for prompt, response, label in unpaired_rows(read_rows(folder, "pairs"))
    ]
    settings = DpoConfig.model_validate({"beta": BETA, **options})
    objective = KtoObjective(load_causal(folder / "causal"), settings)
    others = mismatched_examples(examples)
    reference = objective.reference_logprobs(load_causal(folder / "reference"), examples, others)
    return float(objective.measure(examples, reference, others).losses.double().mean())


def show(ours: dict[str, float], theirs: dict[str, float], versions: dict[str, str]) -> int:
    """Print the table; return the exit status."""
    sys.stdout.write(", ".join(f"{name} {number}" for name, number in versions.items()) + "\n")
    differences = {
        title: abs(ours[title] - theirs[title]) / max(1.0, theirs[title]) for title in ours
    }
    for title, loss in ours.items():
        row = f"{title:14} ours {loss:10.6f}  TRL {theirs[title]:10.6f}  "
        sys.stdout.write(f"{row}difference {differences[title]:.1e}\n")
    worst = max(differences.values())
    sys.stdout.write(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}\n")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
