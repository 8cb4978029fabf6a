"""docs/models.md, from what was measured."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers as hf

from benchmarks.conversations import FamilyOutcome
from benchmarks.models import COLUMNS, Outcome

HEADINGS = ("SFT", "reward model", "PPO", "DPO", "sampling", "`generate`")

INTRODUCTION = """# Models: what goes through every stage

Written by `python -m benchmarks.models` with transformers {transformers} and torch {torch} on one
CPU thread, from tiny models of random weights whose code is that of the published ones. It says
whether what is computed is the model's own, not how good a model becomes.

## Architectures

{works} of {total} architectures go through every stage. Each was trained for a few steps by each
trainer and saved, and the saved folder was read by plain transformers:

- **SFT, DPO**: the held-out loss or margin that training reports, against one batch padded on the
  right.
- **Reward model**: the held-out margin that training reports, against
  `AutoModelForSequenceClassification`; with a star, transformers has no such class for the
  architecture: trunk and head were read, and other tools cannot load that reward model.
- **PPO** (two iterations, value model): the largest of the first importance ratio's distance from
  1, the KL of the untrained policy, and the distance of the trained policy's log-probabilities from
  those of its saved folder.
- **Sampling**: the log-probability with which each token was drawn, against the padded batch.
- **`generate`**: greedy answers of `transformers.generate` from the saved folder are the sampler's,
  token by token.

Differences are the largest seen, in nats (rewards: units of score); up to {tolerance:g} counts as
rounding of float32 with these weights. "By length": sequences of one length run together, not
packed ([compute.md](compute.md)). "Sampled by length": trained packed, prompts of one length
answered together, for its layers run more than once in a pass. PhiMoE's
routers draw experts at random in training mode, and RWKV divides its weights in evaluation mode:
both train here in the one form that the saved folder has, so a PhiMoE router learns only where two
experts share a token.

"""
REFUSED = """
What no layout can honour is refused before training:

| architecture | what is said |
|---|---|
"""
FAMILIES = """
## Conversations

The chat formats of {total} published families, rebuilt small (their marks in their places, not
their text), each with a tokenizer of its kind; {works} agree with transformers in everything below.

- **Prompts**: one question, a dialogue, and a system turn where the template knows one are the ids
  of `apply_chat_template`.
- **Renderings**: prompt and response up to the end of the turn are the ids of the whole
  conversation, for five answers to each; where the template writes no end, all but the end.
- **Answers**: `transformers.generate` from the saved folder writes what the sampler writes, and
  stops where it stops.

"""
FAMILY_HEADINGS = (
    "family",
    "a turn ends with",
    "tokenizer's EOS",
    "BOS",
    "the saved model stops at",
    "prompts",
    "renderings",
    "answers",
)


def write_page(
    path: Path,
    outcomes: Sequence[Outcome],
    refusals: Mapping[str, str],
    families: Sequence[FamilyOutcome],
) -> None:
    """Write the page to a temporary name, then rename it."""
    text = architectures_table(outcomes)
    text += REFUSED + "".join(f"| {name} | {_cell(said)} |\n" for name, said in refusals.items())
    text += families_table(families)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def architectures_table(outcomes: Sequence[Outcome]) -> str:
    """Introduction and first table."""
    from benchmarks.models import TOLERANCE

    text = INTRODUCTION.format(
        transformers=hf.__version__,
        torch=torch.__version__.split("+")[0],
        works=sum(outcome.works for outcome in outcomes),
        total=len(outcomes),
        tolerance=TOLERANCE,
    )
    text += "| architecture | runs | " + " | ".join(HEADINGS) + " |\n"
    text += "|---" * (len(HEADINGS) + 2) + "|\n"
    for outcome in outcomes:
        cells = [_stage_cell(outcome, stage) for stage in COLUMNS]
        text += f"| {outcome.name} | {outcome.layout} | {' | '.join(cells)} |\n"
    return text


def families_table(families: Sequence[FamilyOutcome]) -> str:
    """Second table, with what stands before it."""
    text = FAMILIES.format(total=len(families), works=sum(family.works for family in families))
    text += "| " + " | ".join(FAMILY_HEADINGS) + " |\n"
    text += "|---" * len(FAMILY_HEADINGS) + "|\n"
    for family in families:
        stops = ", ".join(f"`{stop}`" for stop in family.stops)
        counts = (family.prompts, family.renderings, family.answers)
        shares = " | ".join(f"{found} of {of}" for found, of in counts)
        row = f"| {family.name} | `{family.turn_end}` | `{family.eos}` | {family.bos} | {stops} |"
        text += _escaped(row) + f" {shares} |\n"
    return text


def _stage_cell(outcome: Outcome, stage: str) -> str:
    if stage in outcome.failures:
        return _cell(outcome.failures[stage])
    gap = outcome.gaps[stage]
    if stage == "generate":
        return "same" if gap == 0 else f"{gap:.0%} differ"
    return f"{gap:.0e}" + ("*" if stage == "reward" and outcome.own_classifier else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:200]


def _escaped(row: str) -> str:
    """Escape bars inside code: a table ends its cell at them even there."""
    parts = row.split("`")
    parts[1::2] = [part.replace("|", "\\|") for part in parts[1::2]]
    return "`".join(parts)
