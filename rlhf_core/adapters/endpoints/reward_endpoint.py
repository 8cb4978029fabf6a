"""A scorer on another machine: a term of ``policy.rewards`` that is asked over HTTP."""

import math
from collections.abc import Sequence
from typing import Any

from rlhf_core.adapters.http_client import FixedKey, JsonClient, readable_key
from rlhf_core.adapters.settings import load_settings
from rlhf_core.config import EndpointTermConfig
from rlhf_core.errors import LabelError, RewardError
from rlhf_core.schema import Prompt


class RewardEndpoint:
    """Asks a server for the scores of responses; ``close`` closes its connections."""

    def __init__(self, key: str, settings: EndpointTermConfig) -> None:
        """Connect to nothing yet.

        Args:
            key: of the term, for messages.
            settings: of the term.

        Raises:
            ConfigError: the key of the environment cannot be sent.
        """
        secret = load_settings().rlhf_reward_api_key
        auth = secret and FixedKey("Bearer", readable_key("RLHF_REWARD_API_KEY", secret))
        self._key, self._settings = key, settings
        self._server = JsonClient(
            settings.url,
            auth=auth or None,
            variable="RLHF_REWARD_API_KEY",
            timeout=settings.timeout_seconds,
            patience=settings.patience_seconds,
        )

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score each response.

        Raises:
            RewardError: the server refuses, stays lost, or does not answer with as many numbers.
        """
        rows, size = list(zip(prompts, responses, strict=True)), self._settings.batch_size
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [score for batch in batches for score in self._ask(batch)]

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _ask(self, rows: Sequence[tuple[Prompt, str]]) -> list[float]:
        body = {
            "prompts": [prompt.prompt[-1].content for prompt, _ in rows],
            "responses": [response for _, response in rows],
            "references": [prompt.reference for prompt, _ in rows],
            "conversations": [
                [{"role": turn.role, "content": turn.content} for turn in prompt.prompt]
                for prompt, _ in rows
            ],
        }
        try:
            answer = self._server.request("POST", "", json=body)
        except LabelError as error:
            raise RewardError(f"{self._key}: {error}") from error
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != len(rows) or not all(map(_is, scores)):
            raise RewardError(
                f'{self._key}: {self._server.place}: expected {{"scores": [{len(rows)} finite '
                f"numbers]}}, found {str(answer)[:200]}"
            )
        return [float(score) for score in scores]


def _is(score: Any) -> bool:
    return isinstance(score, int | float) and math.isfinite(score)
