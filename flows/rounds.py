"""Round after round: train, collect pairs of the new policy's answers, label them, train on all.

Every step of every round is on record before the next one begins, so that a killed command, or one
that waits for people's votes, goes on where it was and does nothing twice.
"""

import logging
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Completed

from rlhf_core.adapters.datasets import versioning
from rlhf_core.adapters.datasets.dvc_versions import publishing_base, require_remote
from rlhf_core.adapters.registry.champions import read_history
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import BusyError, ConfigError, DataError
from rlhf_core.feedback.results import PullResult
from rlhf_core.schema import RunContext
from rlhf_core.storage.locks import locked
from rlhf_core.storage.records import read_record, write_record
from rlhf_flows.engine.artifacts import show_rounds
from rlhf_flows.engine.flow_results import PipelineResult, Round, Rounds
from rlhf_flows.engine.inputs import PipelineInputs, RoundsInputs
from rlhf_flows.engine.references import find_choosers, resolve_model
from rlhf_flows.engine.runs.folder import ROUNDS, ROUNDS_PICTURE
from rlhf_flows.engine.runs.in_prefect import is_deployed, name_of_run, open_context
from rlhf_flows.engine.runs.locks import in_use
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.pipeline import rlhf_pipeline

logger = logging.getLogger(__name__)

_LOCK = ".rounds.lock"

one_round = rlhf_pipeline.with_options(name="rlhf-round")
"""The pipeline under another name: who is notified of pipelines hears of these by their rounds."""


@flow(name="rlhf-rounds", flow_run_name=name_of_run)
def rounds_flow(settings: RunSettings | None, inputs: RoundsInputs) -> Rounds:
    """Train, collect, label, and train again; the first round's run gives all of them its name.

    Stages run in this process: where people approve, a round ends with HOLD, and the next one goes
    on from its policy all the same.
    """
    config, context = open_context(settings, inputs.run)
    busy = BusyError(f"rounds of run {context.run_id}: another process is at them; wait")
    with in_use(context), locked(context.directory / _LOCK, busy=busy):
        rounds = _Rounds(config, context, inputs.rounds)
        result = rounds.run()
    return _conclude(result)


class _Rounds:
    """The rounds of one first run, and what is on record of them."""

    def __init__(self, config: PipelineConfig, context: RunContext, number: int) -> None:
        self._config, self._context, self._number = config, context, number
        self._path = context.directory / ROUNDS
        if self._path.exists():
            self._state = read_record(self._path, Rounds)
        else:
            self._state = Rounds(run_id=context.run_id, directory=context.directory)
        if len(self._state.rounds) > number:
            raise ConfigError(
                f"--rounds {number}: run {context.run_id} is in round {len(self._state.rounds)}; "
                "give that number or more"
            )
        self._state = self._state.model_copy(update={"wanted": number})
        if number > 1:
            _require_labels(config)

    def run(self) -> Rounds:
        """Go on with the first round that is not done, until one has to wait or ends them all."""
        if self._state.rounds:  # another number may be wanted by now, and this be killed, too
            write_record(self._path, self._state)
        for number in range(1, self._number + 1):
            done = self._train(number)
            if number == self._number or done.policy is None:
                break
            if self._label(done).next_version is None:
                break
        return self._state

    def _train(self, number: int) -> Round:
        """Run the pipeline of a round, unless it has come to its end."""
        if number > len(self._state.rounds):
            self._record(self._begin(number))
        one = self._state.rounds[number - 1]
        if one.verdict is not None:
            return one
        config = self._settings_of(one)
        said = number, self._number, one.run_id, one.data_version or "as the settings say"
        logger.info("round=%d of=%d run=%s data=%s", *said)
        settings = RunSettings(values=config.model_dump(mode="json"))
        folder = self._context.directory.with_name(one.run_id)
        result = one_round(settings, PipelineInputs(run=str(folder)))
        one = self._record(_with_result(one, result))
        self._draw()
        return one

    def _begin(self, number: int) -> Round:
        """Fix what a round trains on before it does: a later attempt finds the same settings."""
        if number == 1:
            return Round(
                number=1, run_id=self._context.run_id, data_version=self._config.data.version
            )
        before = self._state.rounds[number - 2]
        base = None
        if self._config.feedback_settings().rounds.start == "champion":
            current = read_history(self._config.project).current
            if current is not None:
                base = str(resolve_model(current.policy).path)
            else:
                logger.warning("round=%d starts from model.base: there is no champion", number)
        return Round(
            number=number,
            run_id=f"{self._context.run_id}-round-{number}",
            data_version=before.next_version,
            base=base,
        )

    def _settings_of(self, one: Round) -> PipelineConfig:
        """Return the settings with the round's data, base and prompts."""
        values: dict[str, Any] = self._config.model_dump(mode="json")
        values["data"]["version"] = one.data_version
        if one.base is not None:
            values["model"]["base"] = one.base
        if values["feedback"] is not None:
            values["feedback"]["seed"] = (values["feedback"]["seed"] + one.number - 1) % 2**32
        return RunSettings(values=values).config

    def _label(self, one: Round) -> Round:
        """Collect pairs of the round's policy and bring their votes back as a dataset version."""
        from rlhf_core.stages.labels.pull import pull_labels
        from rlhf_core.stages.labels.push import push_labels

        if one.next_version is not None:
            return one
        config = self._settings_of(one)
        if one.collection is None:
            one = self._record(self._collected(one, config))
        collection = str(one.collection)
        pushed = push_labels(config, collection)
        share = config.feedback_settings().rounds.min_labelled_fraction if pushed.waits else 0.0
        pulled = pull_labels(config, collection, at_least=share)
        one = _with_votes(one, config.feedback_settings().output / collection, pulled)
        if one.next_version is not None:
            return self._record(one.model_copy(update={"awaits": None}))
        if not pushed.waits:
            raise DataError(
                f"collection {one.collection}: no pair has the votes it needs "
                f"({pulled.votes_per_pair}, feedback.votes_per_pair) and its labeler has no more"
            )
        awaits = (
            f"labels are awaited: {pulled.ready} of {pulled.pairs} pairs have the votes they need "
            f"({pulled.votes_per_pair}), {pulled.needed} are needed; people label {pushed.place}"
        )
        return self._record(one.model_copy(update={"awaits": awaits}))

    def _collected(self, one: Round, config: PipelineConfig) -> Round:
        """Sample the pairs of a round from its own policy."""
        from rlhf_core.stages.collect import collect_pairs
        from rlhf_flows.engine.references import find_dataset

        trained = [resolve_model(uri) for uri in one.scorers]
        splits = find_dataset(config, None, one.dataset)
        models = [resolve_model(str(one.policy))]
        found = collect_pairs(config, splits, models, find_choosers(config, trained))
        counts, choice = found.collection.counts, found.collection.choice
        return one.model_copy(
            update={"collection": found.folder.name, "pairs": counts.pairs, "choice": choice}
        )

    def _record(self, one: Round) -> Round:
        """Write down how far a round is."""
        rounds = (*self._state.rounds[: one.number - 1], one)
        self._state = self._state.model_copy(update={"rounds": rounds})
        write_record(self._path, self._state)
        return one

    def _draw(self) -> None:
        """Draw the win rates of all rounds so far."""
        from rlhf_core.evaluation.plots import save_rounds_plot

        done = {one.number: one.metrics for one in self._state.rounds if one.metrics}
        if done:
            save_rounds_plot(self._context.directory / ROUNDS_PICTURE, done)


def _require_labels(config: PipelineConfig) -> None:
    """Refuse before the first training what would end the rounds after it.

    Raises:
        ConfigError: no ``feedback`` section, or nobody to disagree.
        DataError: no repository, or no storage to publish a dataset version to.
    """
    feedback = config.feedback_settings()
    choice = feedback.choice
    if choice is not None and not choice.models and not config.policy.needs_reward_model:
        raise ConfigError(
            f"feedback.choice: {config.policy.algorithm} trains no reward model that could disagree"
            " with the judge; name two in feedback.choice.models, or leave choice out"
        )
    root = versioning.repository_root(Path())
    publishing_base(root)
    require_remote(root)


def _with_result(one: Round, result: PipelineResult) -> Round:
    """Add what the pipeline run of a round came to."""
    scorers = [
        result.stages[role].model.uri for role in ("reward", "judge") if role in result.stages
    ]
    metrics = {
        name: estimate
        for stage in result.stages.values()
        for name, estimate in stage.report.metrics.items()
        if name in Round.SHOWN
    }
    return one.model_copy(
        update={
            "verdict": result.verdict,
            "reasons": result.reasons,
            "policy": result.policy.uri if result.policy else None,
            "champion": result.promotion.champion if result.promotion else None,
            "dataset": f"{result.splits.directory}@{result.splits.sha256}",
            "scorers": tuple(scorers),
            "metrics": metrics,
        }
    )


def _with_votes(one: Round, folder: Path, pulled: PullResult) -> Round:
    """Add what people, or who votes for them, said of a round's pairs."""
    from rlhf_core.feedback.agreement import choosers_against_votes

    return one.model_copy(
        update={
            "alpha": pulled.alpha,
            "labelled": pulled.ready + pulled.published_before,
            "agreement": choosers_against_votes(folder),
            "next_version": pulled.last_version,
        }
    )


def _conclude(result: Rounds) -> Rounds:
    """Show the outcome where a worker runs this; one that waits names what for."""
    show_rounds(result)
    if is_deployed() and result.awaits is not None:
        again = f"{result.awaits}; then run rlhf-rounds again with run {result.run_id}"
        return Completed(name="WAITING", message=again, data=result)  # type: ignore[return-value]
    return result
