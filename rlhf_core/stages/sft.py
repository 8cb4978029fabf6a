"""Stage 2: demonstrations teach the base model format and tone."""

import time
from functools import partial

from rlhf_core.adapters.tracking.tracking import open_run, stage_inputs
from rlhf_core.config import PipelineConfig
from rlhf_core.ports import Observer
from rlhf_core.schema import DatasetSplits, RunContext, StageResult
from rlhf_core.stages.evaluate import evaluate_sft
from rlhf_core.stages.models.base_model import load_base
from rlhf_core.stages.models.examples import load_demonstrations
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.memory import require_memory
from rlhf_core.stages.training.run import (
    Fitted,
    Followers,
    begin_training,
    register_trained,
    train,
)
from rlhf_core.trainers.sft import fit_sft


def train_sft(
    config: PipelineConfig,
    splits: DatasetSplits,
    context: RunContext,
    observer: Observer | None = None,
) -> StageResult:
    """Fine-tune the base model on demonstrations, register it, and apply the SFT gates.

    A killed stage called again with the same arguments goes on from its last checkpoint and ends
    with the same weights. ``observer`` follows the training.

    Raises:
        ModelError: the base model cannot serve.
        DataError: no demonstration fits the model.
        DivergedError: the loss is not finite.
        RegistryError: MLflow does not answer.
    """
    started = time.monotonic()
    job = begin_training("sft", config, splits, context)
    require_memory(
        job,
        config.sft.compute,
        trained={"sft": config.model.base},
        step_tokens=config.sft.step_tokens(config.model.max_length),
    )
    with open_run(config, context, "sft", inputs=stage_inputs(splits)) as run:
        run.log_dataset(splits)
        trained = train(job, fit, run, observer)
        reference = register_trained(run, job, trained, "causal", base=config.model.base)
        result = evaluate_sft(config, splits, reference, context, run=run)
    return result.model_copy(update={"seconds": time.monotonic() - started})


def fit(job: TrainingJob, followers: Followers) -> Fitted:
    """Fine-tune the base model on the demonstrations of a job."""
    model, renderer = load_base(job.config.model, job.splits.template_date)
    load = partial(load_demonstrations, job.config, renderer, job.directory)
    summary = fit_sft(
        model,
        load(job.splits.demonstrations_train),
        load(job.splits.demonstrations_heldout),
        settings=job.config.sft,
        run=followers.training_run(job),
    )
    return model, renderer.tokenizer, summary
