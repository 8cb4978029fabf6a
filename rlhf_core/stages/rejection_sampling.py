"""Rejection sampling: the best of several answers, by a reward model, become demonstrations.

Touvron et al. (2023), arXiv:2307.09288, section 3.2.3, fine-tune on them; Dong et al. (2023),
arXiv:2304.06767, call it RAFT.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from torch import nn

from rlhf_core.adapters.registry.registry import check_role
from rlhf_core.dataprep.keys import content_id
from rlhf_core.dataprep.manifest import fingerprint_of
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation.comparison import best_of_n_kl_bound
from rlhf_core.models import load_causal
from rlhf_core.models.classifier import outside_model
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.schema import Conversation, Demonstration, ModelRef, ModelRole, Prompt, Record
from rlhf_core.schema.model_uri import is_model_uri
from rlhf_core.stages.labels.answers import Answer, AnsweredPart
from rlhf_core.stages.models.determinism import derived_seed, make_deterministic
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import Scorer, open_scorer, positions_of
from rlhf_core.statistics.resampling import Array
from rlhf_core.storage.journal import appending, read_journal
from rlhf_core.storage.locks import locked
from rlhf_core.storage.model_folders import folder_kind
from rlhf_core.storage.records import write_records
from rlhf_core.trainers.progress import Progress

logger = logging.getLogger(__name__)

_AT_ONCE = 64
"""Prompts answered between two lines of the journal, and scored together."""

Reason = Literal["not_renderable", "too_long", "unfinished", "not_scored"]


class BestOf(Record):
    """How the answers are drawn."""

    num_answers: int = Field(ge=2)
    """To each prompt."""
    temperature: float = Field(gt=0.0)
    max_new_tokens: int = Field(ge=1)
    seed: int = Field(ge=0)


class BestAnswer(Demonstration):
    """An answer that was chosen, and how: a row that ``data.demonstrations`` reads as it is."""

    prompt_id: str
    score: float
    """The scorer's of it."""
    mean_score: float
    """Of all answers it was chosen from: what one answer would have had on average."""
    best_of: int
    """Answers drawn to this prompt."""
    candidates: int
    """Those of them that ended by themselves, hold text and were scored."""
    temperature: float
    max_new_tokens: int
    seed: int
    policy: str
    policy_sha256: str
    scorer: str
    scorer_sha256: str


class LeftOut(Record):
    """A prompt that got no demonstration."""

    prompt_id: str
    prompt: Conversation
    reason: Reason
    detail: str


class BestAnswers(Record):
    """What was written."""

    output: Path
    prompts: int
    demonstrations: int
    score: float
    """Mean of the answers chosen."""
    mean_score: float
    """Mean of all answers they were chosen from."""
    kl_bound: float
    """Upper bound of the KL from the policy, nats per response: ``best_of_n_kl_bound``."""
    left_out: dict[str, int]
    """Prompts without a demonstration, by reason."""
    left_out_file: Path | None
    """Those prompts; None where there are none."""


def best_of(num_answers: int, *, temperature: float, max_new_tokens: int, seed: int) -> BestOf:
    """Return the settings, if there is something to choose from.

    Raises:
        ConfigError: one answer, or answers that are all the same.
    """
    if num_answers < 2:
        raise ConfigError(
            f"--best-of {num_answers}: expected 2 or more; one answer leaves nothing to choose"
        )
    if temperature == 0.0:
        raise ConfigError(
            f"--best-of {num_answers} with --temperature 0: greedy answers are all the same, and "
            "there is nothing to choose; take a temperature above 0"
        )
    return BestOf(
        num_answers=num_answers, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
    )


def find_scorer(reference: str, resolve: Callable[[str], ModelRef]) -> ModelRef:
    """Return the reward model that is to choose; a hub model is downloaded.

    Args:
        reference: registered version or alias, folder, or hub name.
        resolve: finds one of our own models.

    Raises:
        RegistryError: there is no such version, or it was not trained as a reward model: a judge
            that chose what SFT learns would judge its own pupil.
        ModelError: the folder holds no reward model, or there is none.
    """
    if is_model_uri(reference):
        roles: tuple[ModelRole] = ("reward",)
        check_role(reference, roles, "--scorer names it")
        return resolve(reference)
    if Path(reference).is_dir() and folder_kind(Path(reference)) == "scalar":
        return resolve(reference)
    return outside_model("--scorer", reference)


def sample_best(
    policy: ModelRef,
    scorer: ModelRef,
    prompts: Sequence[Prompt],
    settings: BestOf,
    output: Path,
    *,
    device: str = "auto",
) -> BestAnswers:
    """Answer every prompt several times and write the answer that scores highest.

    Answers that were cut, or that the scorer cannot read, are not chosen. The answers are kept in a
    journal beside ``output`` until that is there, so that a killed call goes on where it was.

    Args:
        policy: causal model.
        scorer: reward model, ours or a classifier with one score.
        prompts: each a conversation that ends with the user's turn.
        settings: how answers are drawn.
        output: JSON lines file that is not there yet.
        device: of both models, which are not loaded at once.

    Raises:
        DataError: the file is there, another call writes it, or no prompt got an answer to choose.
        ModelError: the scorer is no reward model.
    """
    if output.suffix != ".jsonl":
        raise DataError(f"{output}: expected a name that ends in .jsonl, which is what is written")
    left_file = output.with_name(f"{output.stem}.left_out{output.suffix}")
    _require_absent(output)
    asked, left_out = _readable(policy, scorer, prompts, settings)
    journal = _journal(policy, asked, settings, output)
    _require_absent(*(() if journal.exists() else (left_file,)))
    said = len(prompts), settings.num_answers, policy.uri, scorer.uri
    logger.info("sampling prompts=%d answers_each=%d policy=%s scorer=%s", *said)
    open_scorer(scorer, device)  # one that cannot be loaded is refused before hours of sampling
    busy = DataError(f"{output}: another rlhf sample is writing it; wait for it")
    with locked(output.parent / f".{output.name}.lock", busy=busy):
        _require_absent(output)  # another call may have written it since
        make_deterministic(settings.seed)
        answers = _answers(policy, asked, settings, device, journal)
        scores = _scores(open_scorer(scorer, device), asked, answers)
        found = [
            _best(policy, scorer, prompt, settings, *row)
            for prompt, *row in zip(asked, answers, scores, strict=True)
        ]
        best = [one for one in found if isinstance(one, BestAnswer)]
        left_out += [one for one in found if isinstance(one, LeftOut)]
        if best and left_out:
            write_records(left_file, left_out)
        if best:
            write_records(output, best)
        journal.unlink(missing_ok=True)
    reasons = dict(Counter(str(one.reason) for one in left_out))
    if not best:
        raise _nothing_to_choose(reasons)
    return BestAnswers(
        output=output,
        prompts=len(prompts),
        demonstrations=len(best),
        score=float(np.mean([one.score for one in best])),
        mean_score=float(np.mean([one.mean_score for one in best])),
        kl_bound=best_of_n_kl_bound(settings.num_answers),
        left_out=reasons,
        left_out_file=left_file if left_out else None,
    )


def _journal(policy: ModelRef, asked: Sequence[Prompt], settings: BestOf, output: Path) -> Path:
    """Return the file that keeps these very answers; which prompts are asked, the scorer says."""
    parts = {
        "policy": policy.sha256,
        "prompts": "\n".join(prompt.model_dump_json() for prompt in asked),
        "settings": settings.model_dump_json(),
    }
    return output.with_name(f".{output.name}.{fingerprint_of(parts)[:12]}.answers.jsonl")


def _require_absent(*files: Path) -> None:
    for file in files:
        if file.exists() or file.is_symlink():
            raise DataError(f"{file} is there already, and stays as it is; name another --output")


def _nothing_to_choose(reasons: dict[str, int]) -> DataError:
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return DataError(
        f"no prompt got an answer that can be chosen ({counts}); nothing is written. Cut answers "
        "need a larger --max-new-tokens, long prompts a smaller one"
    )


def _readable(
    policy: ModelRef, scorer: ModelRef, prompts: Sequence[Prompt], settings: BestOf
) -> tuple[list[Prompt], list[LeftOut]]:
    """Part the prompts into those that both models can read, and the others with the reason."""
    answers, room = model_renderer(policy.path), positions_of(policy.path)
    others = [] if scorer.kind == "classifier" else [model_renderer(scorer.path)]
    asked, left_out = [], []
    for prompt in prompts:
        try:
            length = len(answers.prompt_ids(prompt.prompt))
            for other in others:
                other.prompt_ids(prompt.prompt)
        except DataError as error:
            left_out.append(_left_out(prompt, "not_renderable", str(error)))
            continue
        if room is not None and length + settings.max_new_tokens > room:
            detail = f"{length} tokens, of {room} less {settings.max_new_tokens} for the answer"
            left_out.append(_left_out(prompt, "too_long", detail))
        else:
            asked.append(prompt)
    return asked, left_out


def _answers(
    policy: ModelRef, prompts: Sequence[Prompt], settings: BestOf, device: str, journal: Path
) -> list[list[Answer]]:
    """Answer every prompt ``num_answers`` times, or take what the journal has: [n][num_answers].

    Answer j to prompt i has a random stream of its own, as in ``answer_several_times``.
    """
    starts = range(0, len(prompts), _AT_ONCE)
    recorded = iter(read_journal(journal, AnsweredPart))
    model: nn.Module | None = None
    renderer = model_renderer(policy.path)
    rows: list[list[Answer]] = [[] for _ in prompts]
    progress = Progress("answers", total=len(starts) * settings.num_answers, done=0)
    with closing(progress), appending(journal) as keep:
        for start, number in product(starts, range(settings.num_answers)):
            part = next(recorded, None)
            if part is None:
                model = model or load_causal(policy.path, device=device)
                sampled = sample_responses(
                    model,
                    renderer.tokenizer,
                    [one.prompt for one in prompts[start : start + _AT_ONCE]],
                    max_new_tokens=settings.max_new_tokens,
                    temperature=settings.temperature,
                    seed=derived_seed(settings.seed, "best of n", str(number)),
                    first_stream=start,
                )
                given = tuple(Answer(text=one.text, finished=one.finished) for one in sampled)
                keep(part := AnsweredPart(answers=given))
            for row, answer in zip(rows[start:], part.answers, strict=False):
                row.append(answer)
            progress.advance({})
    return rows


def _scores(score: Scorer, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> Array:
    """Score of every answer that can be chosen, NaN of the others: [n, num_answers]."""
    scores = np.full((len(prompts), len(answers[0]) if answers else 0), np.nan)
    starts = range(0, len(prompts), _AT_ONCE)
    with closing(Progress("scores", total=len(starts), done=0)) as progress:
        for start in starts:
            for number in range(scores.shape[1]):
                rows = [
                    row
                    for row in range(start, min(start + _AT_ONCE, len(prompts)))
                    if _may_be_chosen(answers[row][number])
                ]
                if rows:
                    scores[rows, number] = score(
                        [prompts[row].prompt for row in rows],
                        [answers[row][number].text for row in rows],
                    )
            progress.advance({})
    return scores


def _may_be_chosen(answer: Answer) -> bool:
    return answer.finished and bool(answer.text.strip())


def _best(
    policy: ModelRef,
    scorer: ModelRef,
    prompt: Prompt,
    settings: BestOf,
    answers: Sequence[Answer],
    scores: Array,
) -> BestAnswer | LeftOut:
    """Return the answer that scores highest, the first of equal ones."""
    ended = sum(map(_may_be_chosen, answers))
    candidates = np.flatnonzero(np.isfinite(scores))
    if not ended:
        detail = f"none of {len(answers)} answers ended within {settings.max_new_tokens} tokens"
        return _left_out(prompt, "unfinished", detail)
    if not candidates.size:
        return _left_out(prompt, "not_scored", f"{ended} answers, none with a finite score")
    chosen = candidates[scores[candidates].argmax()]
    text = answers[chosen].text
    return BestAnswer(
        demonstration_id=content_id("best", prompt.model_dump_json(), text),
        prompt=prompt.prompt,
        response=text,
        source=f"best-of-{len(answers)}",
        prompt_id=prompt.prompt_id,
        score=float(scores[chosen]),
        mean_score=float(scores[candidates].mean()),
        best_of=len(answers),
        candidates=int(candidates.size),
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        policy=policy.uri,
        policy_sha256=policy.sha256,
        scorer=scorer.uri,
        scorer_sha256=scorer.sha256,
    )


def _left_out(prompt: Prompt, reason: Reason, detail: str) -> LeftOut:
    return LeftOut(prompt_id=prompt.prompt_id, prompt=prompt.prompt, reason=reason, detail=detail)
