"""The terms of ``policy.rewards``: each scores the text of a response, their sum is the reward."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_core import processes
from rlhf_core.config import RewardTerm
from rlhf_core.errors import RewardError
from rlhf_core.functional.rewards import combine_ensemble, shape_scores
from rlhf_core.functional.running_moments import RunningMoments
from rlhf_core.rollout.experience import ScoredRollout
from rlhf_core.schema import Prompt
from rlhf_core.tokenization import Renderer, TokenizedPrompt


@dataclass(frozen=True)
class Answers:
    """What a scorer is given: row i of everything belongs to one response."""

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    own_scores: Tensor
    """[B] of the run's reward model, which has read the tokens already."""


Scorer = Callable[[Answers], Sequence[float]]
"""Returns a score per response."""


def own_scores(answers: Answers) -> Sequence[float]:
    """Score as the run's reward model did."""
    return list(answers.own_scores.tolist())


@dataclass(frozen=True)
class Term:
    """One term: who scores, and what tells it from another one."""

    name: str
    """In metrics: ``reward_term_<name>``."""
    scorers: Sequence[Scorer]
    """Several are an ensemble."""
    combine: Callable[[Tensor], Tensor]
    """From scores [scorers, B] to one [B]."""
    identity: str
    """Settings, and digests of what the scorers are made of."""

    def scores(self, answers: Answers) -> Tensor:
        """Score the answers, [B] float32.

        Raises:
            RewardError: a score is not finite; names the term and the response.
        """
        rows = [score(answers) for score in self.scorers]
        scores = torch.tensor(rows, dtype=torch.float32).view(len(rows), len(answers.texts))
        finite = torch.isfinite(scores).all(dim=0)
        if not bool(finite.all()):
            text = answers.texts[int((~finite).nonzero()[0])]
            raise RewardError(
                f"policy.rewards: term {self.name}: the score of the response {text[:80]!r} is not "
                "finite"
            )
        return self.combine(scores)


@dataclass(frozen=True)
class RewardTerms:
    """All terms, with what they read beside the responses."""

    terms: Sequence[Term]
    prompts: Mapping[str, Prompt]
    """By ``prompt_id``."""
    renderer: Renderer

    def of(self, prompts: Sequence[TokenizedPrompt], scored: ScoredRollout) -> ScoredRollout:
        """Return ``scored`` with the scores of each term; the processes ask about a share each.

        Args:
            prompts: what was sampled from, each for as many neighbouring responses.
            scored: the responses.

        Raises:
            RewardError: a term gave no finite number; names the term and the response.
        """
        group = scored.rollout.num_rows // len(prompts)
        asked = [self.prompts[prompt.prompt_id] for prompt in prompts for _ in range(group)]
        responses = processes.share(scored.rollout.responses)
        own = Answers(
            prompts=processes.share(asked),
            texts=[self.renderer.response_text(ids.tolist()) for ids in responses],
            own_scores=processes.share(scored.scores),
        )
        rows, place = scored.rollout.num_rows, scored.scores.device
        found = {
            term.name: processes.gather_rows(term.scores(own).to(place), rows)
            for term in self.terms
        }
        return replace(scored, terms=found)

    def identity(self) -> list[bytes]:
        """Bytes that tell these terms, and the reference answers they read, from others."""
        references = [
            f"{prompt.prompt_id}={prompt.reference}"
            for prompt in self.prompts.values()
            if prompt.reference is not None
        ]
        return [row.encode() for row in (*(term.identity for term in self.terms), *references)]


def sum_terms(
    scored: ScoredRollout, settings: Sequence[RewardTerm], moments: Mapping[str, RunningMoments]
) -> tuple[ScoredRollout, dict[str, RunningMoments]]:
    """Put the sum of weight * clip(scale(score)) over the terms in place of the model's score.

    Args:
        scored: with ``terms`` in the order of the settings; without any it stays as it is.
        settings: ``policy.rewards``.
        moments: of the terms' scores before, by name.

    Returns:
        The rollout with its reward, and the moments with this batch.
    """
    if not scored.terms:
        return scored, {}
    total, seen = torch.zeros_like(scored.scores), {}
    for (name, scores), term in zip(scored.terms.items(), settings, strict=True):
        shaped, seen[name] = shape_scores(
            scores,
            scored.rollout.finished,
            moments.get(name, RunningMoments()),
            scale=term.scale,
            clip=term.clip,
            missing_eos_penalty=None,
        )
        total = total + term.weight * shaped
    return replace(scored, scores=total), seen


def ensemble(how: str, *, uncertainty_coef: float) -> Callable[[Tensor], Tensor]:
    """Return ``combine_ensemble`` as a function of the scores alone."""
    return lambda scores: combine_ensemble(scores, how, uncertainty_coef=uncertainty_coef)
