"""What a PPO run carries from one iteration to the next besides weights and moments."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from rlhf_core.config import KlWatchConfig
from rlhf_core.errors import KlLimitError
from rlhf_core.functional.running_moments import RunningMoments
from rlhf_core.trainers.loop import shuffled

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class PpoState:
    """A value: an iteration makes the next one, a checkpoint holds it as JSON."""

    kl_coef: float
    iteration: int = 0
    """Iterations that are done; prompts, random streams and orders follow from it."""
    score_moments: RunningMoments = field(default_factory=RunningMoments)
    learning_rate_scale: float = 1.0
    """What the KL watch left of the policy's learning rate."""
    num_interventions: int = 0
    """How often the KL watch stepped in."""
    first_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the first iteration."""
    last_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the latest one."""

    def values(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "PpoState":
        """Undo ``values``."""
        return cls(**{**values, "score_moments": RunningMoments(**values["score_moments"])})


def draw(items: Sequence[Item], *, drawn: int, count: int, seed: int) -> list[Item]:
    """Next ``count`` items: each once in a shuffled order, then each again in another.

    Args:
        items: what to draw from, at least one.
        drawn: how many were drawn before; the only state there is.
        count: how many to draw.
        seed: of the orders.
    """
    orders = {
        epoch: shuffled(len(items), seed=seed, epoch=epoch)
        for epoch in range(drawn // len(items), (drawn + count - 1) // len(items) + 1)
    }
    return [
        items[orders[number // len(items)][number % len(items)]]
        for number in range(drawn, drawn + count)
    ]


@dataclass(frozen=True)
class KlSpike:
    """A batch whose KL from the reference is past a limit of the KL watch."""

    limit: str
    """Setting whose limit was passed."""
    kl_per_token: float
    """Nats."""
    kl_per_response: float
    """Nats."""
    message: str
    """What was found and what was allowed."""


def find_kl_spike(watch: KlWatchConfig, metrics: Mapping[str, float]) -> KlSpike | None:
    """Say which limit of the KL watch ``kl_per_token`` or ``kl`` has passed, or None."""
    per_token, per_response = metrics["kl_per_token"], metrics["kl"]
    for name, found, limit in (
        ("max_kl_per_token", per_token, watch.max_kl_per_token),
        ("max_kl_per_response", per_response, watch.max_kl_per_response),
    ):
        if limit is not None and found > limit:
            message = f"KL {found:.3g} nats is past policy.kl_watch.{name} {limit:.3g}"
            return KlSpike(name, per_token, per_response, message)
    return None


def intervene(state: PpoState, watch: KlWatchConfig, spike: KlSpike) -> PpoState:
    """Apply the watch's action to the state; returning to a checkpoint is the caller's part.

    Every call logs one line that begins with ``kl_spike action=... kl_per_token=...``; flows turn
    it into an event, so its keys stay as they are.

    Raises:
        KlLimitError: the action is to stop, or there were too many interventions already.
    """
    exhausted = watch.action != "stop" and state.num_interventions == watch.max_interventions
    logger.warning(
        "kl_spike action=%s kl_per_token=%.6g kl_per_response=%.6g limit=%s iteration=%d "
        "interventions=%d",
        "stop" if exhausted else watch.action,
        spike.kl_per_token,
        spike.kl_per_response,
        spike.limit,
        state.iteration,
        state.num_interventions + 1,
    )
    if watch.action == "stop":
        raise KlLimitError(
            f"iteration {state.iteration}: {spike.message}; "
            "lower the learning rate or raise kl_coef"
        )
    if exhausted:
        raise KlLimitError(
            f"iteration {state.iteration}: {spike.message}, after {watch.max_interventions} "
            f"interventions ({watch.action})"
        )
    state = replace(state, num_interventions=state.num_interventions + 1)
    if watch.action == "raise_kl_coef":
        return replace(state, kl_coef=state.kl_coef * watch.factor)
    return replace(state, learning_rate_scale=state.learning_rate_scale / watch.factor)
