"""Brings labels back when Label Studio says that there are new ones, and enough of them.

Nothing is remembered here: which collections there are, which votes and what was published stand in
their folders and on the label server, so that a restart finds what an event told its predecessor.
"""

import heapq
import logging
import threading
import time

from rlhf_core.adapters.settings import load_settings
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import ConfigError, RlhfError
from rlhf_core.stages.labels.labelers import labeler_of
from rlhf_core.stages.labels.pull import count_ready, num_published, pairs_needed, pull_labels
from rlhf_flows.engine.events import announce_published
from rlhf_flows.engine.prefect_server import ask
from rlhf_flows.engine.runs.settings import RunSettings

SETTLE_SECONDS = 1.0
"""After an event: votes come in bursts, and a server that queues events may be behind them."""
RETRY_SECONDS = 60.0
"""After a fault: Label Studio tells of every vote once."""
DEPLOYMENT = "rlhf-collect/collect"
_ATTEMPTS = 1000
"""Flow runs for one batch of a collection, at most."""

logger = logging.getLogger(__name__)


class LabelListener:
    """Looks at the collections that it is told of, one after the other, in a thread.

    Args:
        config: settings whose labeler tells of votes.
        at_least: share of a collection's pairs that have to be ready, and in no version yet.

    Raises:
        ConfigError: it does not.
    """

    def __init__(self, config: PipelineConfig, at_least: float) -> None:
        self._config, self._at_least = config, at_least
        self.collections()
        self._due: list[tuple[float, str]] = []
        self._problems: dict[str, str] = {}
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="labels", daemon=True)

    def collections(self, project: int | None = None) -> list[str]:
        """Return the names of the collections that were sent to the server, or to one project."""
        feedback = self._config.feedback_settings()
        sent = labeler_of(feedback.labeler).sent_collections(feedback.output)
        if sent is None:
            raise ConfigError(
                f"feedback.labeler.kind is {feedback.labeler.kind}: expected a tool that tells of"
                " votes by a webhook, as label_studio does"
            )
        return [name for name, number in sent.items() if project in (None, number)]

    def start(self) -> None:
        """Begin, with all there are: events may have come while nobody listened."""
        for name in self.collections():
            self._look_in(name, 0.0)
        self._thread.start()

    def notice(self, project: int) -> list[str]:
        """Look at the collections of a project soon; return their names."""
        found = self.collections(project)
        for name in found:
            self._look_in(name, SETTLE_SECONDS)
        return found

    def end(self) -> None:
        """Finish the look that was begun, and begin none; what is due is found by the next one."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _look_in(self, name: str, seconds: float) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, name))
            self._changed.notify()

    def _work(self) -> None:
        while (name := self._next()) is not None:
            try:
                self._look_at(name)
                self._problems.pop(name, None)
            except Exception as error:  # of any kind: the next vote must find somebody listening
                self._tell(name, error)
                self._look_in(name, RETRY_SECONDS)

    def _next(self) -> str | None:
        """Wait for the next collection; one look answers every event whose time has come."""
        with self._changed:
            while not self._ended:
                now = time.monotonic()
                if self._due and self._due[0][0] <= now:
                    name = self._due[0][1]
                    self._due = [each for each in self._due if each[1] != name or each[0] > now]
                    heapq.heapify(self._due)
                    return name
                self._changed.wait(self._due[0][0] - now if self._due else None)
        return None

    def _tell(self, name: str, error: Exception) -> None:
        """Log a fault once as long as it stays the same."""
        if self._problems.get(name) != str(error):
            bug = None if isinstance(error, RlhfError | OSError) else error
            said = "labels_not_pulled collection=%s retry_in_seconds=%.0f: %s"
            logger.error(said, name, RETRY_SECONDS, error, exc_info=bug)
        self._problems[name] = str(error)

    def _look_at(self, name: str) -> None:
        ready, pairs = count_ready(self._config, name)
        needed = pairs_needed(self._at_least, pairs)
        logger.info("votes_counted collection=%s ready=%d needed=%d", name, ready, needed)
        if ready < needed:
            return
        if load_settings().prefect_api_url is None:
            self._pull(name)
        else:
            start_deployed_pull(self._config, name, self._at_least)

    def _pull(self, name: str) -> None:
        pulled = pull_labels(self._config, name, at_least=self._at_least)
        if pulled.published is not None:
            version = pulled.published.version.version
            logger.info("labels_published collection=%s version=%s", name, version)
            announce_published(pulled.published)


def start_deployed_pull(config: PipelineConfig, collection: str, at_least: float) -> None:
    """Let the deployment of the collecting flow bring the votes in, once for each batch of them.

    A flow run that is under way, or failed, is left to itself: a Retry goes on with it. One that
    completed and left the batch where it was, because a vote had been taken back, is repeated.

    Raises:
        OrchestrationError: the server does not answer, or refuses.
        ConfigError: it has no such deployment.
    """
    folder = config.feedback_settings().output / collection
    key = f"rlhf-labels:{collection}:{num_published(folder) + 1}"
    body = {
        "parameters": {
            "settings": RunSettings(values=config.model_dump(mode="json")).model_dump(mode="json"),
            "inputs": {"collection": str(folder.absolute()), "at_least": at_least},
        }
    }
    url, deployment = str(load_settings().prefect_api_url), _deployment()
    for attempt in range(_ATTEMPTS):
        path = f"deployments/{deployment}/create_flow_run"
        run = ask(url, path, body | {"idempotency_key": f"{key}:{attempt}"})
        state = (run.get("state") or {}).get("type")
        said = collection, run["name"], state
        if state in ("FAILED", "CRASHED", "CANCELLED"):
            logger.error("pull_failed collection=%s flow_run=%s state=%s: retry it", *said)
        elif state != "COMPLETED":
            logger.info("pull_started collection=%s flow_run=%s state=%s", *said)
        if state != "COMPLETED":
            return


def _deployment() -> str:
    """Return the id of the deployment.

    Raises:
        ConfigError: there is none.
    """
    flow, name = DEPLOYMENT.split("/")
    wanted = {"flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": [name]}}}
    found = ask(str(load_settings().prefect_api_url), "deployments/filter", wanted)
    if not found:
        raise ConfigError(f"the Prefect server has no deployment {DEPLOYMENT}; first: rlhf deploy")
    return str(found[0]["id"])
