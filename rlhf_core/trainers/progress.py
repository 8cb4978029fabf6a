"""How far long work is."""

import logging
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from rlhf_core.ports import Observer

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOG_LINES = 15.0


class Progress:
    """A bar on a terminal, a log line now and then elsewhere; an observer hears every step."""

    def __init__(
        self, description: str, observer: Observer | None = None, *, total: int, done: int
    ) -> None:
        self.observer = observer
        self.description, self.total, self.done = description, total, done
        self.started = self.last_line = time.monotonic()
        self.first = done
        self.bar = tqdm(
            total=total, initial=done, desc=description, disable=not sys.stderr.isatty()
        )

    def advance(self, metrics: Mapping[str, float]) -> None:
        """Count one step and show ``metrics``."""
        self.done += 1
        if self.observer is not None:
            self.observer.step(self.description, self.done, self.total, metrics)
        shown = {name.split("/")[-1]: f"{value:.4g}" for name, value in metrics.items()}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        due = time.monotonic() - self.last_line > SECONDS_BETWEEN_LOG_LINES
        if self.bar.disable and (due or self.done == self.total):
            self.last_line = time.monotonic()
            line = " ".join(f"{name}={value}" for name, value in (self._times() | shown).items())
            logger.info("%s step=%d of=%d %s", self.description, self.done, self.total, line)

    def _times(self) -> dict[str, str]:
        """Time so far and, while steps are left, the time they take at this process's pace."""
        elapsed = time.monotonic() - self.started
        times = {"elapsed": tqdm.format_interval(elapsed)}
        if left := self.total - self.done:
            times["eta"] = tqdm.format_interval(elapsed / (self.done - self.first) * left)
        return times

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.bar.close()


class Stopwatch:
    """Wall time by phase."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Book the time since the last call under ``seconds_<phase>``."""
        now = time.perf_counter()
        self.seconds[f"seconds_{phase}"] = now - self.last
        self.last = now

    def metrics(self, num_tokens: int) -> dict[str, float]:
        """Seconds by phase, and sampled tokens per second over all of them."""
        total = sum(self.seconds.values())
        return {**self.seconds, "response_tokens_per_second": num_tokens / total}
