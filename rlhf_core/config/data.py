"""Where raw data comes from and what preparation must find in it."""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from rlhf_core.config.base import Count, Fraction, NonNegative, Resamples, Section
from rlhf_core.config.evaluation import GateConfig

Choice = Literal["a", "b", "tie", "none"]
"""What a source's word means; ``none`` is no vote."""

SourceFormat = Literal[
    "canonical", "hh", "pairs", "ranked", "flat", "tree", "tree_messages", "label_studio"
]
DemonstrationFormat = Literal["canonical", "hh", "messages"]

VERSION_NAME = r"data-v[1-9]\d*"
"""Pattern of the name of a published dataset version."""

HUB = "hf:"
"""First part of a path that names a dataset of the Hugging Face hub."""

STYLES = (
    "list",
    "exclamation",
    "question",
    "hedge",
    "apology",
    "refusal",
    "flattery",
    "disclaimer",
)
"""Habits of style that are looked for in responses."""

_PRODUCTION_SHIFT = "data/production_shift_auc"
DATA_METRICS = (
    "data/krippendorff_alpha",
    "data/length_win_fraction",
    "data/length_auc",
    "data/first_win_fraction",
    "data/source_label_auc",
    "data/source_length_share",
    "data/prompt_shift_auc",
    _PRODUCTION_SHIFT,
    *(f"data/style/{habit}" for habit in STYLES),
)
"""What preparation measures, where the data allows; ``data.gates`` can ask for nothing else."""

DATA_CONFIDENCE = 0.95
"""Two-sided level of the intervals of these metrics."""


WORDS_OF_TRUTH = {
    "true": ("1", "yes", "on"),
    "false": ("0", "no", "off"),
    "1": ("true",),
    "0": ("false",),
    "yes": ("true",),
    "no": ("false",),
    "on": ("true",),
    "off": ("false",),
}
"""What a truth value may stand as in data or settings; YAML reads yes and no as truth values."""


def word_of(value: object) -> str:
    """Return the one way in which a label is written: 0, 0.0 and "0.0" are ``0``."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return value.strip()
    try:
        number = float(value)  # type: ignore[arg-type]
        return str(int(number)) if number.is_integer() else str(number)
    except (ValueError, TypeError, OverflowError):
        return shortened(value)


def shortened(value: object) -> str:
    """Return a value that is no label as a message shows it."""
    try:
        return str(value)[:60]
    except ValueError:  # Python writes no integer of more than 4,300 digits.
        return f"a huge {type(value).__name__}"


_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{1,15})?")


def _with_words(value: Any) -> Any:
    """Take numbers and truth values as keys, as YAML has them."""
    if not isinstance(value, dict):
        return value
    words: dict[Any, Any] = {}
    for key, side in value.items():
        word = key if isinstance(key, str) else word_of(key)
        if words.get(word, side) != side:
            raise ValueError(f"{word!r} is duplicated, as {words[word]!r} and as {side!r}")
        words[word] = side
    return words


class JoinConfig(Section):
    """A second file whose rows complete those of the first: votes in one, texts in the other."""

    path: Path
    """The second file."""
    on: str | tuple[str, str]
    """Column that both have, or its name in the first file and in the second."""


class SourceConfig(Section):
    """One raw source of comparisons: a file, a folder of files, or a dataset of the hub.

    The container follows from the name (``.jsonl`` or ``.ndjson``, ``.json``, ``.parquet``,
    ``.csv``, ``.tsv``, ``.xlsx``, all but Parquet and workbooks with ``.gz`` or ``.zst`` too), the
    meaning of a row from ``format``. ``rlhf data look FILE`` writes these settings for a file.
    """

    path: Path
    """``hf://datasets/<name>`` is a dataset of the Hugging Face hub."""
    format: SourceFormat = "canonical"
    """What a row says; docs/data.md describes each."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name of a column to the source's, where they differ, or to a path into it, such as
    ``input.messages``, ``output.0.content`` or ``completions.*.text``. The rest keep
    their names."""
    choices: Annotated[dict[str, Choice], BeforeValidator(_with_words)] = Field(
        default_factory=dict
    )
    """The source's words or numbers for the winning side, where they are not a, b and tie; ``none``
    for those that are no vote, such as skip. Without any for a side our own words stay."""
    strengths: Annotated[dict[str, NonNegative], BeforeValidator(_with_words)] = Field(
        default_factory=dict
    )
    """The source's words or numbers for how much better, as numbers."""
    annotators: tuple[str, ...] = ()
    """Columns that are people, each cell one's choice (format ``flat``)."""
    join: JoinConfig | None = None
    """A second file that completes the rows of this one."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Of delimited text; None finds it out from the header. With ``;`` numbers may be 1,5."""
    quotes: bool = True
    """Of delimited text: whether double quotes around a cell are its writer's; false where none
    are, and a quote is text wherever it stands."""
    sheet: str | None = None
    """Of a workbook; None takes the first."""
    subset: str | None = None
    """Hub only: which configuration of a dataset that has several."""
    split: str = "train"
    """Hub only."""
    revision: str | None = None
    """Hub only: branch, tag or commit."""


class DemonstrationsConfig(Section):
    """Demonstrations: a file of their own, or the chosen responses of the preferences."""

    path: Path | None = None
    """None takes the chosen responses of the preference pairs."""
    format: DemonstrationFormat = "canonical"
    """As for preferences; ``messages`` are chats, whose last turn is the demonstration."""
    columns: dict[str, str] = Field(default_factory=dict)
    """As for preferences."""


class UnpairedConfig(Section):
    """A file of responses with good or bad labels: ``{prompt, completion, label}``, or chats."""

    path: Path
    """Rows have ``prompt`` (text or messages) and ``completion``, or ``messages`` whose last turn
    is the response, and ``label``: true or false. What ``rlhf serve --feedback`` keeps is read as
    it is."""
    columns: dict[str, str] = Field(default_factory=dict)
    """As for preferences."""
    labels: Annotated[dict[str, bool], BeforeValidator(_with_words)] = Field(default_factory=dict)
    """The source's words or numbers for a good response (true) and a bad one (false), where they
    are not true and false, 1 and 0, yes and no, good and bad or up and down."""


def _path_or_section(value: Any) -> str:
    return "_path" if isinstance(value, str | Path) else "_section"


_UnpairedFile: TypeAlias = Annotated[
    Annotated[Path, Tag("_path")] | Annotated[UnpairedConfig, Tag("_section")],
    Discriminator(_path_or_section),
]


class PromptsConfig(Section):
    """Prompts for PPO and for held-out evaluation."""

    path: Path | None = None
    """Prompts to sample from; None takes the prompts of the preference pairs."""
    heldout_path: Path | None = None
    """Prompts only evaluation reads; None splits them off by ``heldout_fraction``."""
    production_path: Path | None = None
    """Prompts as users send them; only compared with the others, to measure prompt shift."""


class VotesConfig(Section):
    """How votes become preferences, and how annotators are watched."""

    method: Literal["majority", "dawid_skene", "mace"] = "majority"
    """majority counts votes; the others weigh annotators by their record (docs/data.md)."""
    exclude: tuple[str, ...] = ()
    """Annotators whose votes do not count; one who never voted is an error."""
    num_resamples: Annotated[Resamples, Field(ge=80)] = 1_000
    """Bootstrap resamples behind the intervals of Krippendorff's alpha."""
    min_votes: Count = 20
    """Annotators with fewer votes are not judged; nor, with fewer on comparisons that have other
    votes as well, weighed by a record of their own."""
    fast_fraction: Fraction = 0.25
    """An annotator whose median time is below this share of everyone's median is too fast."""


PersonalData = Literal["email", "phone", "secret"]


class CleaningConfig(Section):
    """Rows to filter out beyond what is plainly broken. Each rule has its own reason."""

    near_duplicates: float | None = Field(default=None, gt=0, le=1)
    """Jaccard similarity of word triples from which two pairs are the same, and from which a
    training prompt gives a held-out one away; None looks for exact repeats alone."""
    contamination: tuple[Path, ...] = ()
    """Benchmark files (one text a line, or rows of any container): rows that quote one go."""
    contamination_columns: tuple[str, ...] = ()
    """Columns of the benchmark rows to look for; empty takes every text of eight words or more."""
    languages: tuple[str, ...] = ()
    """ISO codes of the languages to keep; empty keeps all."""
    personal_data: tuple[PersonalData, ...] = ()
    """Kinds of personal data whose rows are filtered out."""
    tokens: bool = True
    """Render every row with the base model's tokenizer and chat template, and filter out what does
    not fit ``model.max_length``."""


class DataConfig(Section):
    """Raw data in, dataset version out."""

    preferences: SourceConfig
    more_preferences: tuple[SourceConfig, ...] = ()
    """Further sources; every row keeps the name of the file it came from."""
    batches: Path | None = None
    """Folder of annotation batches that ``rlhf data add`` fills; read after the other sources."""
    unpaired: tuple[_UnpairedFile, ...] = ()
    """Files of responses with good or bad labels, which ``policy.loss: kto`` learns from; a path
    or a section each. Only the policy does: SFT, reward model and judge read the others."""
    demonstrations: DemonstrationsConfig = DemonstrationsConfig()
    prompts: PromptsConfig = PromptsConfig()
    votes: VotesConfig = VotesConfig()
    cleaning: CleaningConfig = CleaningConfig()
    output: Path = Path("data/prepared")
    """Directory of the prepared dataset; replaced as a whole or not at all."""
    version: str | None = Field(default=None, pattern=f"^{VERSION_NAME}$")
    """A published dataset version to use instead of preparing one: ``data-v3``."""
    heldout_fraction: Fraction = 0.1
    """Share of dialogues kept for held-out evaluation. A dialogue is what opens with one system
    message and first user turn; its prompts stay together."""
    judge_fraction: Fraction = 0.5
    """Share of the preferences' dialogues that train the judge instead of the reward model."""
    near_dialogues: float | None = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of word triples from which two first user turns are nearly equal; their
    dialogues are kept on one side of the split and in one half. None looks for equal ones alone."""
    max_unusable_fraction: Fraction = 0.2
    """Blank, identical or voteless rows are filtered out one by one; a larger share than this means
    the file itself is broken, and stops the run."""
    min_pairs: Count = 100
    """Fewer resolved pairs than this stop the run."""
    min_alpha: float | None = Field(default=None, ge=-1, le=1)
    """Krippendorff's alpha below this stops the run; None where rows have a single vote."""
    gates: tuple[GateConfig, ...] = ()
    """Conditions on metrics of the report (``DATA_METRICS``, explained in docs/data.md); one that
    does not pass stops the run."""

    @property
    def unpaired_files(self) -> tuple[UnpairedConfig, ...]:
        """``unpaired``, a path alone being a file whose columns have our names."""
        return tuple(
            UnpairedConfig(path=item) if isinstance(item, Path) else item for item in self.unpaired
        )

    @model_validator(mode="after")
    def _gates_measurable(self) -> "DataConfig":
        for gate in self.gates:
            if gate.metric not in DATA_METRICS:
                raise ValueError(
                    f"gates: {gate.metric!r} is not measured; expected {', '.join(DATA_METRICS)}"
                )
            gate.require_some_fail()
            if not math.isclose(gate.confidence, DATA_CONFIDENCE):
                raise ValueError(
                    f"gates: {gate.metric}: confidence {gate.confidence:g}, but datasets are"
                    f" measured at {DATA_CONFIDENCE:g}"
                )
            if gate.metric == _PRODUCTION_SHIFT and self.prompts.production_path is None:
                raise ValueError(f"gates: {gate.metric} needs data.prompts.production_path")
        return self
