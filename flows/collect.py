"""The loop back to data: sample pairs -> label -> new dataset version, which starts the pipeline.

Every step finds what it did before and goes on from there, so that a Retry of the flow repeats
nothing.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from rlhf_core.adapters.registry import registry
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import ConfigError
from rlhf_core.feedback.results import CollectedPairs
from rlhf_core.schema import CHAMPION, StageResult
from rlhf_core.schema.model_uri import alias_uri
from rlhf_flows.engine.artifacts import show_labels
from rlhf_flows.engine.events import announce_published
from rlhf_flows.engine.flow_results import LabelsResult
from rlhf_flows.engine.inputs import CollectInputs
from rlhf_flows.engine.references import find_choosers, find_dataset, resolve_model
from rlhf_flows.engine.runs.in_prefect import find_run, is_deployed, label_process, name_of_run
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.engine.runs.stage_folder import saved_result

P = ParamSpec("P")
R = TypeVar("R")


@flow(name="rlhf-collect", flow_run_name=name_of_run)
def collect_flow(settings: RunSettings, inputs: CollectInputs) -> LabelsResult:
    """Sample pairs, ask for votes, publish what has enough; people's votes come by a later run."""
    from rlhf_core.stages.labels.pull import pull_labels
    from rlhf_core.stages.labels.push import push_labels

    label_process()
    config = settings.config
    collected = None if inputs.collection else _step("sample", sample_pairs)(config, inputs)
    collection = str(collected.folder) if collected else str(inputs.collection)
    pushed = _step("push", push_labels)(config, collection)
    pulled = None
    if collected is None or not pushed.waits:
        pulled = _step("pull", pull_labels)(config, collection, at_least=inputs.at_least or 0.0)
        if pulled.published is not None:
            announce_published(pulled.published)
    return _conclude(LabelsResult(collected=collected, pushed=pushed, pulled=pulled))


def sample_pairs(config: PipelineConfig, inputs: CollectInputs) -> CollectedPairs:
    """Sample the pairs of a new collection; one that is there is used as it is."""
    from rlhf_core.stages.collect import collect_pairs

    config.feedback_settings()  # its absence is said before anything is looked for
    if inputs.evaluation is not None:
        return _evaluated_pairs(config, inputs, inputs.evaluation)
    if inputs.pairs is not None or inputs.half_width is not None:
        raise ConfigError("pairs and half_width are about an evaluation; name its run, too")
    first = inputs.model or alias_uri(f"{config.project}-policy", CHAMPION)
    names = [first, *([inputs.against] if inputs.against else [])]
    for name in names:
        registry.check_role(name, ("sft", "policy"), "only they answer prompts")
    models = [resolve_model(name) for name in names]
    splits = find_dataset(config, None, inputs.dataset)
    return collect_pairs(config, splits, models, find_choosers(config))


def _evaluated_pairs(config: PipelineConfig, inputs: CollectInputs, run: str) -> CollectedPairs:
    """Draw pairs that the evaluation of a run judged."""
    from rlhf_core.stages.labels.evaluated import collect_evaluated

    if inputs.model or inputs.against or inputs.dataset:
        raise ConfigError(
            "an evaluation has its own models and prompts; leave model, against and dataset out"
        )
    context = find_run(config, run)
    evaluated = saved_result(context, "evaluate", StageResult)
    if evaluated is None:
        raise ConfigError(
            f"run {context.run_id}: no evaluation in it; first: rlhf evaluate CONFIG --run-id "
            f"{context.run_id}"
        )
    return collect_evaluated(
        config, context.run_id, evaluated, pairs=inputs.pairs, half_width=inputs.half_width
    )


def _step(name: str, work: Callable[P, R]) -> Callable[P, R]:
    """Give a step its place in the run's graph. Each knows itself what is done: no cache."""
    return task(name=name, cache_policy=NO_CACHE)(work)


def _conclude(result: LabelsResult) -> LabelsResult:
    """Show the outcome where a worker runs this; one without a version names what is missing."""
    show_labels(result)
    if is_deployed() and result.next_step is not None:
        return Completed(name="WAITING", message=result.next_step, data=result)  # type: ignore[return-value]
    return result
