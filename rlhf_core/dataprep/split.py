"""Which prompts train and which are held out: fixed by the prompt itself, not by its place."""

from dataclasses import dataclass, field
from typing import Literal

from rlhf_core.dataprep.keys import Key, text_key, unit_interval

Side = Literal["train", "heldout"]
Half = Literal["reward", "judge"]


@dataclass(slots=True)
class PromptSplitter:
    """Assigns prompts to sides and halves.

    The choice hashes the normalised prompt with the seed, so rows added later move no other row,
    and every file (demonstrations, pairs, prompts) gives the same prompt the same side.
    """

    seed: int
    heldout_fraction: float
    judge_fraction: float
    reserved: set[Key] = field(default_factory=set)
    """Prompts of the held-out prompt file: no other file may use them."""
    has_heldout_file: bool = False
    heldout_elsewhere: set[Key] = field(default_factory=set)
    """Held-out prompts of pairs and demonstrations, filled in by ``side``."""

    @property
    def rule(self) -> str:
        """Two datasets split by one rule agree on every prompt that both have."""
        rule = (
            f"seed {self.seed}, held out {self.heldout_fraction:g}, judge {self.judge_fraction:g}"
        )
        if self.has_heldout_file:
            rule += f", prompts {text_key(b''.join(sorted(self.reserved)).hex()).hex()[:12]}"
        return rule

    def side(self, key: Key) -> Side:
        """Return the side of a pair's or a demonstration's prompt."""
        if unit_interval(self.seed, "heldout", key) < self.heldout_fraction:
            self.heldout_elsewhere.add(key)
            return "heldout"
        return "train"

    def half(self, key: Key) -> Half:
        """Return whether a preference prompt trains the reward model or the judge."""
        chance = unit_interval(self.seed, "judge", key)
        return "judge" if chance < self.judge_fraction else "reward"

    def prompt_side(self, key: Key) -> Side | None:
        """Return the side of a prompt to sample from; None sets it aside.

        Where a file of held-out prompts exists, it alone supplies the held-out side, and a
        sampling prompt that some pair or demonstration holds out serves neither side.
        """
        if not self.has_heldout_file:
            return self.side(key)
        return None if key in self.reserved or key in self.heldout_elsewhere else "train"
