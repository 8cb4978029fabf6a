"""`rlhf init`: a folder with settings, templates and documents that fit one's own data and model.

The files are looked at with the readers that preparation uses, and the base model's own tokenizer
counts tokens. Sizes follow from what is found; every number that is written has its reason beside
it. Nothing that is there already is written over.
"""

import filecmp
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import AutoConfig

from rlhf_core.adapters.datasets import dvc_versions
from rlhf_core.config import GatesConfig, PromotionConfig, SourceConfig, load_config
from rlhf_core.dataprep.keys import DialogueKey, dialogue_key
from rlhf_core.dataprep.sources import read_with_rows
from rlhf_core.dataprep.sources.containers import is_hub
from rlhf_core.dataprep.sources.look import Found, look_at
from rlhf_core.dataprep.sources.rows import comparison_problem
from rlhf_core.errors import ConfigError, DataError, ModelError
from rlhf_core.schema import Comparison, Record
from rlhf_core.stages.project.writer import SETTINGS, write_project
from rlhf_core.storage.records import atomic_file
from rlhf_core.tokenization.load import own_template, tokenizer_beside
from rlhf_core.tokenization.model_folder import loading_options, require_whole_files

Goal = Literal["try", "better"]
GOALS: dict[str, Goal] = {"try": "try", "better": "better"}

_LENGTHS = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_MEASURED = 2_000
_FEWEST, _ENOUGH = 150, 1_000
"""Dialogues below which nothing can be said, and from which gates can ask for better."""
_SLACK = 0.2
"""What gates on signs of reward hacking ask less of a trial: some 75 prompts are held out in it."""
_RATES = ((20e6, "5.0e-4", "2.0e-4", "5.0e-5"), (500e6, "5.0e-5", "2.0e-5", "5.0e-6"))
"""Weights up to which these learning rates of SFT, reward model and DPO hold: small models bear
more. Larger ones get those of the literature, which are the defaults."""
_LARGE = ("2.0e-5", "1.0e-5", "5.0e-7")


class NewProject(Record):
    """What `rlhf init` wrote."""

    directory: Path
    goal: Goal
    settings: str
    files: tuple[str, ...]
    """Relative to the folder."""
    lines: tuple[str, ...]
    """What was found and done, a line each."""


@dataclass(frozen=True)
class Wanted:
    """What somebody has, and wants."""

    base: str
    """Directory or hub name of the model to start from."""
    preferences: tuple[str, ...]
    demonstrations: str | None = None
    prompts: str | None = None
    goal: Goal | None = None
    """None takes what the number of dialogues allows."""
    project: str | None = None


@dataclass
class _Base:
    """What the base model says of itself."""

    base: str
    has_template: bool
    positions: int | None
    vocabulary: int
    weights: float
    """Number of them; 0 where no files lie here."""
    tokenizer: Any


@dataclass
class _Data:
    """What the files hold."""

    found: list[Found]
    dialogues: set[DialogueKey] = field(default_factory=set)
    prompts: list[int] = field(default_factory=list)
    """Tokens of each prompt, and of the longer response to it."""
    responses: list[int] = field(default_factory=list)


def init_project(directory: Path, wanted: Wanted) -> NewProject:
    """Look at files and model, and write a folder that runs.

    Raises:
        ConfigError: a file that would be written is there already.
        DataError: a file cannot be read as what it was given as, or holds too few dialogues.
        ModelError: the model has no tokenizer or cannot be read.
    """
    _require_room(directory)
    base = _look_at_base(wanted.base)
    data = _look_at_data(wanted, base)
    _require_enough(wanted, len(data.dialogues))
    sources = _Sources(directory)
    values = _values(directory, wanted, base, data, sources)
    existing = directory.is_dir()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        sources.copy()
        problem = dvc_versions.begin_repository(directory, sources.kept)
        values |= {"has_dvc": problem is None, "why_no_dvc": problem or ""}
        files = write_project(directory, values)
        load_config(directory / SETTINGS)
        kept = f"no git and DVC: {problem}"
        if problem is None:
            kept = dvc_versions.commit_first(directory, files, sources.kept)
    except BaseException:
        if not existing:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    return NewProject(
        directory=directory,
        goal=values["goal"],
        settings=SETTINGS,
        files=(*files, *sources.copies),
        lines=(values["found"], values["model_line"], values["goal_line"], kept),
    )


def _require_enough(wanted: Wanted, dialogues: int, which: str = "") -> None:
    if dialogues < _FEWEST:
        raise DataError(
            f"{', '.join(wanted.preferences)}: {dialogues} dialogues with a usable comparison"
            f"{which}; with fewer than {_FEWEST} nothing can be held out that says anything"
        )


def _require_room(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory}: is a file; name a folder")
    names = (
        SETTINGS,
        "dvc.yaml",
        "prefect.yaml",
        "README.md",
        ".gitignore",
        "templates/chat.jinja",
    )
    there = [name for name in names if (directory / name).exists()]
    if there:
        raise ConfigError(
            f"{directory}: {', '.join(there)} is there already and would be written over; name "
            "another folder, or move it away"
        )


def _look_at_base(base: str) -> _Base:
    """Read tokenizer and config of a model; no weight is loaded."""
    require_whole_files(base)
    template = own_template(base)
    tokenizer = tokenizer_beside(base)
    if tokenizer is None or tokenizer.eos_token_id is None:
        raise ModelError(f"{base}: has no tokenizer with an EOS token; responses could never end")
    try:
        config = AutoConfig.from_pretrained(base, **loading_options(base, None))
    except (OSError, ValueError) as error:
        raise ModelError(f"{base}: config.json cannot be read: {error}") from error
    import torch

    from rlhf_core.models.memory import weight_bytes
    from rlhf_core.models.text import num_positions

    return _Base(
        base=base,
        has_template=template is not None,
        positions=num_positions(config),
        vocabulary=int(config.get_text_config().vocab_size),
        weights=weight_bytes(Path(base), torch.uint8),
        tokenizer=tokenizer,
    )


def _look_at_data(wanted: Wanted, base: _Base) -> _Data:
    data = _Data([_found(file, "preferences") for file in wanted.preferences])
    for found in data.found:
        for item in _comparisons(found):
            data.dialogues.add(dialogue_key(item.prompt))
        for item in islice(_comparisons(found), _MEASURED):
            prompt = _tokens(base, " ".join(turn.content for turn in item.prompt))
            prompt += 8 * len(item.prompt)  # about what a template adds to a turn
            longer = max(_tokens(base, item.response_a), _tokens(base, item.response_b))
            data.prompts.append(prompt)
            data.responses.append(longer)
    return data


def _found(file: str, section: str) -> Found:
    found = look_at(Path(file))
    if found.section != section:
        given = f"holds {found.section}, no {section}; give it as --{found.section}"
        raise DataError(f"{file}: {given}")
    return found


def _comparisons(found: Found) -> Iterator[Comparison]:
    for _, item in read_with_rows(SourceConfig(**found.settings), files={}):
        if isinstance(item, Comparison) and comparison_problem(item) is None:
            yield item


def _tokens(base: _Base, text: str) -> int:
    return len(base.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class _Sources:
    """Files given by a person, and where their copies lie in the folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.copies: dict[str, Path] = {}
        self.kept: list[str] = []
        """Files in the folder that a dataset version needs."""

    def place(self, file: str) -> str:
        """Return what the settings say of a file: where it lies in the folder, or will."""
        path = Path(file)
        if is_hub(path):
            return file
        absolute, root = path.absolute(), self.directory.absolute()
        if absolute.is_relative_to(root / "data/raw"):
            self.kept.append(absolute.relative_to(root).as_posix())
            return self.kept[-1]
        name, number = f"data/raw/{path.name}", 1
        while self._is_taken(name, path):
            number += 1
            name = f"data/raw/{number}-{path.name}"
        self.copies[name] = path
        self.kept.append(name)
        return name

    def _is_taken(self, name: str, path: Path) -> bool:
        if name in self.copies:
            return self.copies[name] != path
        there = self.directory / name
        return there.exists() and not (
            there.is_file() and path.is_file() and filecmp.cmp(there, path, shallow=False)
        )

    def copy(self) -> None:
        """Copy what lies elsewhere; the originals stay as they are."""
        for name, path in self.copies.items():
            target = self.directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            else:
                with path.open("rb") as source, atomic_file(target) as copy:
                    shutil.copyfileobj(source, copy)


def _values(
    directory: Path, wanted: Wanted, base: _Base, data: _Data, sources: _Sources
) -> dict[str, Any]:
    """Return all that the files say, by the name their templates have for it."""
    model = _model_values(base, data)
    lengths = list(zip(data.prompts, data.responses, strict=True))
    fit = [prompt for prompt, answer in lengths if prompt + answer <= model["max_length"]]
    usable = round(len(data.dialogues) * len(fit) / len(lengths))
    _require_enough(wanted, usable, f" that fit into {base.base}'s {model['max_length']} tokens")
    asked = sum(prompt <= model["max_prompt_length"] for prompt in fit) / len(fit)
    return {
        **_sizes(usable, asked, wanted.goal),
        **model,
        **_data_values(wanted, data, sources),
        "project": wanted.project or _project_name(directory),
        "template": not base.has_template,
    }


def _sizes(dialogues: int, asked: float, goal: Goal | None) -> dict[str, Any]:
    """Return what follows from how many dialogues fit, and the share of them that is asked."""
    goal = goal or ("better" if dialogues >= _ENOUGH else "try")
    fraction = round(min(0.34, max(0.1, 400 / dialogues)), 2)
    heldout = int(dialogues * fraction)
    # The split is drawn, and near-equal dialogues stay together: a quarter may be missing.
    sure = 0.75 * heldout
    samples, pairs = (max(30, int(n) // 10 * 10) for n in (sure * asked, sure / 2))
    visible = round(100 * 1.96 * math.sqrt(0.25 / heldout))
    asks = "that nothing is broken" if goal == "try" else "that the policy is better than SFT"
    return {
        "goal": goal,
        "num_dialogues": f"{dialogues:,}",
        "heldout_fraction": fraction,
        "num_heldout": f"{heldout:,}",
        "min_samples": min(samples, 300),
        "champion_samples": PromotionConfig.model_fields["min_samples"].default,
        "min_pair_samples": min(pairs, 300),  # reward model and judge share the held-out pairs
        "min_pairs": min(100, dialogues // 2),
        "visible": visible,
        "sft_epochs": 3 if dialogues < _ENOUGH else 1,
        "batch_size": 16 if dialogues < _ENOUGH else 32 if dialogues < 10 * _ENOUGH else 64,
        "reward_hacking": GatesConfig.model_fields["reward_hacking"].default,
        "slack": _SLACK if goal == "try" else 0.0,
        "goal_line": f"goal {goal}: the gates ask {asks}; about {heldout:,} dialogues are held out",
    }


def _model_values(base: _Base, data: _Data) -> dict[str, Any]:
    path = Path(base.base)
    named, note = base.base, "  # a name on the Hugging Face hub"
    if path.is_dir():
        # `rlhf data add` prepares in a clone, which has what git and DVC keep, and no model.
        named, note = str(path.absolute()), "  # by its whole path: git and DVC do not keep it"
    total = [sum(both) for both in zip(data.prompts, data.responses, strict=True)]
    longest = _at_least(_quantile(total, 0.98))
    length = min(longest, base.positions) if base.positions else longest
    answer = max(16, min(_quantile(data.responses, 0.75), length // 3, 256))
    rates = next((rates for limit, *rates in _RATES if 0 < base.weights <= limit), list(_LARGE))
    uniform = math.log(base.vocabulary)
    size = f"{base.weights / 1e6:,.1f} million weights" if base.weights else "unknown size"
    own = "its own chat template" if base.has_template else "no chat template: templates/chat.jinja"
    return {
        "base": named,
        "base_note": note,
        "max_length": length,
        "max_prompt_length": length - answer,
        "max_new_tokens": answer,
        "sft_rate": rates[0],
        "reward_rate": rates[1],
        "policy_rate": rates[2],
        "model_size": size,
        "nll": round(0.8 * uniform, 1),
        "nll_note": f"Nats per token. Guessing among {base.vocabulary:,} tokens is {uniform:.1f}: "
        "tighten this to what your first run measures.",
        "model_line": f"{base.base}: {size}, {own}; {length} tokens hold 98% of the conversations"
        if length == longest
        else f"{base.base}: {size}, {own}; it has {length} positions, longer rows are left out",
    }


def _data_values(wanted: Wanted, data: _Data, sources: _Sources) -> dict[str, Any]:
    settings = [
        found.settings | {"path": sources.place(file)}
        for file, found in zip(wanted.preferences, data.found, strict=True)
    ]
    rows, usable = (sum(getattr(one, name) for one in data.found) for name in ("rows", "usable"))
    shapes = ", ".join(dict.fromkeys(found.shape for found in data.found))
    facts = f"{rows:,} rows ({shapes}), {usable:,} usable, {len(data.dialogues):,} dialogues"
    other: dict[str, Any] = {"demonstrations": "", "prompts": ""}
    if wanted.demonstrations:
        found = _found(wanted.demonstrations, "demonstrations")
        place = sources.place(wanted.demonstrations)
        other["demonstrations"] = _yaml(found.settings | {"path": place}, 4)
    if wanted.prompts:
        _found(wanted.prompts, "prompts")
        other["prompts"] = sources.place(wanted.prompts)
    return {
        **other,
        "preferences": _yaml(settings[0], 4),
        "add_options": data.found[0].add_options(),
        "more_preferences": _yaml(settings[1:], 4) if settings[1:] else "",
        "found": facts,
        "found_readme": f"Found in {', '.join(wanted.preferences)}: {facts}.",
    }


def _yaml(value: Any, indent: int) -> str:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return "\n".join(" " * indent + line for line in text.splitlines())


def _quantile(values: Sequence[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _at_least(tokens: int) -> int:
    return next((length for length in _LENGTHS if length >= tokens), _LENGTHS[-1])


def _project_name(directory: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", directory.absolute().name.lower()).strip("-")
    return name or "rlhf"
