"""A collection: pairs of answers that wait for votes, and where they come from."""

import random
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison, ModelRef, Record
from rlhf_core.storage.own_folders import OwnFolder
from rlhf_core.storage.records import read_record, read_records, sha256_of

MANIFEST = "manifest.json"
PAIRS = "pairs.jsonl"
ORIGINS = "origins.jsonl"
ALIKE = "alike.jsonl"
"""Of an evaluation: pairs drawn whose answers are equal, a tie without asking."""
COLLECTION = OwnFolder("the collection", is_ours=lambda folder: (folder / MANIFEST).is_file())


class SampledModel(Record):
    """One of the models whose answers are compared."""

    uri: str
    version: str
    sha256: str
    """Over its weight file."""

    @classmethod
    def of(cls, model: ModelRef) -> "SampledModel":
        """Return what a collection says of a model."""
        return cls(uri=model.uri, version=model.version, sha256=model.sha256)


class Origin(Record):
    """Which model gave which answer of a pair; those who vote do not see it."""

    comparison_id: str
    prompt_id: str
    model_a: str
    """URI of the model that gave the first response."""
    model_b: str
    probabilities: dict[str, float] = Field(default_factory=dict)
    """Of a pair that reward models disagree on: each one's probability that ``a`` is better."""


class SamplingSettings(Record):
    """What decided the answers, besides models and prompts."""

    num_prompts: int
    """Asked for; there may be fewer."""
    temperature: float
    max_new_tokens: int
    max_prompt_tokens: int
    max_resamples: int
    seed: int


class Counts(Record):
    """What became of the prompts."""

    prompts: int = Field(ge=0)
    """In the file."""
    heldout: int = Field(ge=0)
    """Left out because their dialogue is held out in the dataset."""
    unfitting: int = Field(ge=0)
    """Drawn and left out because they cannot be rendered, or leave no room for an answer."""
    asked: int = Field(ge=0)
    resampled: int = Field(ge=0)
    """Asked more than once, because both answers were the same or one was empty."""
    indistinct: int = Field(ge=0)
    """Left out because they stayed so."""
    unfinished: int = Field(ge=0)
    """Responses to the prompts asked that were cut at ``max_new_tokens``."""
    pairs: int = Field(ge=0)
    compared: int = Field(default=0, ge=0)
    """Left out because the dataset has a pair of their dialogue, where ``fresh`` ones are asked."""
    agreed: int = Field(default=0, ge=0)
    """Pairs left out because the reward models agreed more on them than on those kept."""


class Choice(Record):
    """Which reward models chose the pairs, by disagreeing on them."""

    models: tuple[SampledModel, ...]
    drawn: int
    """Pairs of answers that they were asked about."""
    kept_disagreement: float
    """Mean over the pairs kept: standard deviation, over the models, of the probability that the
    first answer is better."""
    disagreement: float
    """The same over all pairs drawn."""


class Evaluated(Record):
    """The evaluation whose answers a collection asks about: its votes stay with it."""

    run_id: str
    """Pipeline run that evaluated."""
    look: str
    """Its look at the held-out prompts, ``models:/<project>-looks/<number>``."""
    judged: int
    """Pairs of answers that the judge compared."""
    drawn: int
    """Pairs drawn from them at random; those of two equal answers are not asked about."""
    seed: int
    half_width: float
    """Of the corrected interval, which labels were counted for."""
    accuracy: float | None
    """The judge's on held-out pairs, as measured; None where that is not on record."""
    needed: int | None
    """Pairs that need votes for that half width; None where all of them are not enough."""


class Collection(Record):
    """Lies in the collection's folder as ``manifest.json``."""

    collection_id: str
    """Digest of models, prompts, settings and seed: the same ones make the same collection."""
    models: tuple[SampledModel, ...]
    """One that answered twice, or two that answered once each."""
    prompts: str
    """File they were drawn from."""
    prompts_sha256: str
    dataset_sha256: str
    """Dataset whose held-out dialogues were left alone."""
    settings: SamplingSettings | None
    """None where the answers are those of an evaluation."""
    counts: Counts
    pairs_sha256: str
    git_commit: str | None
    """Of the code that sampled."""
    evaluation: Evaluated | None = None
    """Where the answers are those of an evaluation."""
    choice: Choice | None = None
    """Where reward models chose among the pairs."""


def on_drawn_sides(
    pair: Comparison,
    *,
    prompt_id: str,
    models: tuple[str, str],
    seed: int,
    probabilities: Mapping[str, float] | None = None,
) -> tuple[Comparison, Origin]:
    """Return a pair, each answer on a side drawn for it, and apart from it whose answer is where.

    Args:
        pair: the first model's answer as ``response_a``.
        prompt_id: of what both answer.
        models: URIs of the first and the second.
        seed: of the settings; the pair's id makes each draw its own.
        probabilities: by reward model, that the first model's answer is better.
    """
    sides = [(pair.response_a, models[0]), (pair.response_b, models[1])]
    random.Random(f"{seed}:{pair.comparison_id}").shuffle(sides)
    (first, model_a), (second, model_b) = sides
    told = dict(probabilities or {})
    if first != pair.response_a:
        told = {name: round(1.0 - p, 6) for name, p in told.items()}
    origin = Origin(
        comparison_id=pair.comparison_id,
        prompt_id=prompt_id,
        model_a=model_a,
        model_b=model_b,
        probabilities=told,
    )
    return pair.model_copy(update={"response_a": first, "response_b": second}), origin


def find_collection(reference: str, output: Path) -> Path:
    """Return the folder of a collection.

    Args:
        reference: its id, or the folder itself.
        output: folder of all collections.

    Raises:
        DataError: there is no such collection; names those there are.
    """
    for folder in (output / reference, Path(reference).absolute()):
        if (folder / MANIFEST).is_file():
            return folder
    known = sorted(path.parent.name for path in output.glob(f"*/{MANIFEST}"))
    listing = ", ".join(known) or "none yet; `rlhf collect CONFIG` makes one"
    raise DataError(f"{reference}: no such collection in {output}; known: {listing}")


def read_collection(folder: Path) -> tuple[Collection, list[Comparison]]:
    """Return a collection's manifest and its pairs, in order.

    Raises:
        DataError: the pairs are no longer those that were collected.
    """
    found = read_record(folder / MANIFEST, Collection)
    if sha256_of(folder / PAIRS) != found.pairs_sha256:
        raise DataError(
            f"{folder / PAIRS}: not what {MANIFEST} says; votes would be given to other pairs."
            " Bring the file back, or delete the folder and collect again"
        )
    return found, read_records(folder / PAIRS, Comparison)
