"""What only the texts of prepared pairs tell, gathered while they are written."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf_core.dataprep.cleaning.prompt_index import prompt_text
from rlhf_core.dataprep.keys import DialogueKey
from rlhf_core.dataprep.measures.shift import PromptSample
from rlhf_core.dataprep.measures.style import StyleCounter
from rlhf_core.schema import PreferencePair

SAMPLE = 3_000
"""Prompts of a side that the shift test looks at, at most."""


@dataclass(slots=True)
class PairTexts:
    """Numbers of all pairs, and a sample of the prompts; nothing depends on the pairs' order."""

    styles: StyleCounter = field(default_factory=StyleCounter)
    rewarded: PromptSample = field(default_factory=lambda: PromptSample(SAMPLE))
    """Prompts that the reward model trains on."""
    chosen_lengths: "array[int]" = field(default_factory=lambda: array("i"))
    rejected_lengths: "array[int]" = field(default_factory=lambda: array("i"))
    agreements: "array[float]" = field(default_factory=lambda: array("d"))

    def extend(self, pairs: Sequence[tuple[DialogueKey, PreferencePair, bool]]) -> None:
        """Take pairs in, each with its dialogue and whether the reward model trains on it."""
        chosen = [pair.chosen for _, pair, _ in pairs]
        rejected = [pair.rejected for _, pair, _ in pairs]
        self.styles.extend([dialogue for dialogue, _, _ in pairs], chosen, rejected)
        self.chosen_lengths.extend(map(len, chosen))
        self.rejected_lengths.extend(map(len, rejected))
        self.agreements.extend(pair.agreement for _, pair, _ in pairs)
        for _, pair, trains_reward in pairs:
            if trains_reward:
                self.rewarded.add(prompt_text(pair.prompt))
