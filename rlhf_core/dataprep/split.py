"""Which dialogues train and which are held out: fixed by how they begin, not by their place.

Transcripts of one dialogue, each cut at another turn, are prompts that contain one another. Were
they split one by one, training would have seen half of what is held out.
"""

from dataclasses import dataclass, field
from typing import Literal

from rlhf_core.dataprep.cleaning.near_dialogues import NearDialogues
from rlhf_core.dataprep.keys import DialogueKey, text_key, unit_interval

Side = Literal["train", "heldout"]
Half = Literal["reward", "judge"]


@dataclass(slots=True)
class DialogueSplitter:
    """Assigns dialogues, each as a whole, to sides and halves.

    The choice hashes the normalised first turn with the seed, so rows added later move no other row
    but those that are nearly equal to them, and every file (demonstrations, pairs, prompts) gives
    the same dialogue the same side.
    """

    seed: int
    heldout_fraction: float
    judge_fraction: float
    reserved: set[DialogueKey] = field(default_factory=set)
    """Dialogues of the held-out prompt file: no other file may use them."""
    has_heldout_file: bool = False
    heldout_elsewhere: set[DialogueKey] = field(default_factory=set)
    """Held-out dialogues of pairs and demonstrations, filled in by ``side``; of near ones the one
    that decides for them."""
    near_threshold: float | None = None
    """Similarity from which dialogues are kept together; None keeps only equal ones."""
    near: NearDialogues = field(default_factory=NearDialogues)
    """Filled in once all dialogues are known."""

    @property
    def rule(self) -> str:
        """Two datasets split by one rule agree on every dialogue that both have.

        Models carry it. Whatever changes which rows meet must change its words.
        """
        rule = (
            f"by first user turn, seed {self.seed}, held out {self.heldout_fraction:g},"
            f" judge {self.judge_fraction:g}"
        )
        if self.near_threshold is not None:
            rule += f", near ones together from {self.near_threshold:g}"
        if self.has_heldout_file:
            rule += f", prompts {text_key(b''.join(sorted(self.reserved)).hex()).hex()[:12]}"
        return rule

    def side(self, key: DialogueKey) -> Side:
        """Return the side of a pair's or a demonstration's dialogue."""
        deciding = self.deciding(key)
        if (
            key in self.near.beside_reserved
            or unit_interval(self.seed, "heldout", deciding) < self.heldout_fraction
        ):
            self.heldout_elsewhere.add(deciding)
            return "heldout"
        return "train"

    def half(self, key: DialogueKey) -> Half:
        """Return whether the pairs of a dialogue train the reward model or the judge."""
        chance = unit_interval(self.seed, "judge", self.deciding(key))
        return "judge" if chance < self.judge_fraction else "reward"

    def prompt_side(self, key: DialogueKey) -> Side | None:
        """Return the side of a prompt to sample from, by its dialogue; None filters it out.

        Where a file of held-out prompts exists, it alone supplies the held-out side, and a
        dialogue that some pair or demonstration holds out serves neither side.
        """
        if not self.has_heldout_file:
            return self.side(key)
        is_taken = key in self.reserved or self.deciding(key) in self.heldout_elsewhere
        return None if is_taken or key in self.near.beside_reserved else "train"

    def num_kept_together(self) -> int:
        """Return how many groups of near dialogues would lie on two sides, or in two halves."""
        places: dict[DialogueKey, set[tuple[bool, bool]]] = {}
        for key, deciding in self.near.representative.items():
            place = (
                unit_interval(self.seed, "heldout", key) < self.heldout_fraction,
                unit_interval(self.seed, "judge", key) < self.judge_fraction,
            )
            places.setdefault(deciding, set()).add(place)
        return sum(len(found) > 1 for found in places.values())

    def deciding(self, key: DialogueKey) -> DialogueKey:
        """Return the dialogue that decides where one lies: of near ones, the same for all."""
        return self.near.representative.get(key, key)
