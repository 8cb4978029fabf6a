"""Opens the terms of ``policy.rewards``: models are found and loaded, functions get processes."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor

from rlhf_core.adapters.endpoints.reward_endpoint import RewardEndpoint
from rlhf_core.adapters.registry.registry import check_role
from rlhf_core.config import (
    RUN_REWARD,
    EndpointTermConfig,
    FunctionTermConfig,
    ModelTermConfig,
    RewardTerm,
)
from rlhf_core.config.functions import function_sha256
from rlhf_core.config.reward_terms import PATIENCE_OF_TERMS
from rlhf_core.errors import DataError, RewardError
from rlhf_core.models.classifier import outside_model
from rlhf_core.rollout.reward_function import RewardFunction
from rlhf_core.rollout.rewards import Answers, RewardTerms, Scorer, Term, ensemble, own_scores
from rlhf_core.schema import ModelRef, ModelRole, Prompt
from rlhf_core.schema.model_uri import is_model_uri
from rlhf_core.stages.models.scoring import Scorer as ScoreTexts
from rlhf_core.stages.models.scoring import open_scorer, positions_of
from rlhf_core.storage.model_folders import folder_kind
from rlhf_core.tokenization import Renderer

logger = logging.getLogger(__name__)


def find_scorers(
    settings: Sequence[RewardTerm], resolve: Callable[[str], ModelRef]
) -> dict[str, ModelRef]:
    """Return the models that terms name, by that name; hub models are downloaded.

    Args:
        settings: ``policy.rewards``.
        resolve: finds a registry version.

    Raises:
        ModelError: there is no such folder, and the hub does not give one.
        RegistryError: there is no such version, or it was not trained as a reward model: a judge
            that trains a policy would judge its own pupil.
    """
    found: dict[str, ModelRef] = {}
    roles: tuple[ModelRole] = ("reward",)
    for index, term in enumerate(settings):
        if not isinstance(term, ModelTermConfig):
            continue
        key = f"policy.rewards.{index}.models"
        for name in term.models:
            if is_model_uri(name):
                check_role(name, roles, f"{key} names it")
                found[name] = resolve(name)
            elif name != RUN_REWARD:
                found[name] = outside_model(key, name)
    return found


def rewards_digest(settings: Sequence[RewardTerm], scorers: Mapping[str, ModelRef]) -> str:
    """Return a digest of the terms and what is behind them: a function's file, models' weights.

    Raises:
        ConfigError: a function's file is not there, or the function may not be loaded here.
    """
    terms = [_identity(index, term, scorers) for index, term in enumerate(settings)]
    return hashlib.sha256("\n".join(terms).encode()).hexdigest()


@contextmanager
def open_reward_terms(
    settings: Sequence[RewardTerm],
    scorers: Mapping[str, ModelRef],
    prompts: Iterable[Prompt],
    renderer: Renderer,
    *,
    device: str,
) -> Iterator[RewardTerms | None]:
    """Yield the terms, and end their processes afterwards; None where the settings have none.

    Args:
        settings: ``policy.rewards``.
        scorers: what ``find_scorers`` found.
        prompts: all that may be sampled from, with their reference answers; read where there are
            terms.
        renderer: of the policy.
        device: of the models.

    Raises:
        ConfigError: a function is not there, or may not be loaded here.
        ModelError: a model is no reward model.
        DataError: two prompts have one id.
    """
    if not settings:
        yield None
        return
    by_id: dict[str, Prompt] = {}
    repeated = sum(by_id.setdefault(prompt.prompt_id, prompt) is not prompt for prompt in prompts)
    if repeated:
        raise DataError(f"{repeated} prompts repeat the prompt_id of another")
    with ExitStack() as opened:
        terms = []
        for index, term in enumerate(settings):
            terms.append(
                Term(
                    name=f"{index}_{term.kind}{_named(term)}",
                    scorers=_open(f"policy.rewards.{index}", term, scorers, device, opened),
                    combine=_combine(term),
                    identity=_identity(index, term, scorers),
                )
            )
        yield RewardTerms(terms, by_id, renderer)


def _open(
    key: str, term: RewardTerm, models: Mapping[str, ModelRef], device: str, opened: ExitStack
) -> list[Scorer]:
    if isinstance(term, FunctionTermConfig):
        function = RewardFunction(key, term.function, time_limit=term.time_limit)
        opened.callback(function.close)
        return [lambda answers: list(map(function, answers.prompts, answers.texts))]
    if isinstance(term, EndpointTermConfig):
        endpoint = RewardEndpoint(key, term)
        opened.callback(endpoint.close)
        return [lambda answers: endpoint.scores(answers.prompts, answers.texts)]
    return [
        own_scores
        if name == RUN_REWARD
        else _of_model(f"{key}: {name}", models[name], term, device)
        for name in term.models
    ]


def _of_model(place: str, model: ModelRef, term: ModelTermConfig, device: str) -> Scorer:
    if model.kind == "classifier" and folder_kind(model.path) != "scalar":
        logger.info("%s says no reward_shift: taken as 0, its scores are used as they come", place)
    limit = term.max_length or positions_of(model.path)
    return partial(_scores, place, open_scorer(model, device, max_length=limit), limit)


def _scores(place: str, score: ScoreTexts, limit: int | None, answers: Answers) -> list[float]:
    scores = score([prompt.prompt for prompt in answers.prompts], answers.texts)
    for text, score in zip(answers.texts, scores, strict=True):
        if score != score:
            raise RewardError(
                f"{place} gives no score for the response {text[:80]!r}: with its prompt it is "
                f"longer than {limit} tokens (max_length)"
            )
    return list(map(float, scores))


def _combine(term: RewardTerm) -> Callable[[Tensor], Tensor]:
    if isinstance(term, ModelTermConfig):
        return ensemble(term.combine, uncertainty_coef=term.uncertainty_coef)
    return ensemble("mean", uncertainty_coef=0.0)


def _named(term: RewardTerm) -> str:
    return f"_{term.function.rpartition(':')[2]}" if isinstance(term, FunctionTermConfig) else ""


def _identity(index: int, term: RewardTerm, models: Mapping[str, ModelRef]) -> str:
    """Return settings and digests: another file under the same name is another run."""
    behind = []
    if isinstance(term, FunctionTermConfig):
        behind = [function_sha256(f"policy.rewards.{index}", term.function)]
    elif isinstance(term, ModelTermConfig):
        behind = [models[name].sha256 for name in term.models if name != RUN_REWARD]
    return " ".join([term.model_dump_json(exclude=PATIENCE_OF_TERMS), *behind])
