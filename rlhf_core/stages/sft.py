"""Stage 2: demonstrations teach the base model format and tone."""

import time
from collections.abc import Set
from functools import partial
from operator import attrgetter
from pathlib import Path

from rlhf_core.adapters.tracking import open_run, stage_inputs
from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.keys import DialogueKey, dialogue_key
from rlhf_core.ports import Observer
from rlhf_core.schema import DatasetRef, DatasetSplits, Demonstration, RunContext, StageResult
from rlhf_core.stages.evaluate import evaluate_sft
from rlhf_core.stages.models.base_model import load_base
from rlhf_core.stages.models.examples import tokenize_records
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.memory import require_memory
from rlhf_core.stages.training.run import (
    Fitted,
    Followers,
    begin_training,
    register_trained,
    train,
)
from rlhf_core.storage.records import iterate_records
from rlhf_core.tokenization import Renderer, Rows, TokenizedExample, keep_rows
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


def load_demonstrations(
    config: PipelineConfig,
    renderer: Renderer,
    directory: Path,
    source: DatasetRef,
    *,
    apart: Set[DialogueKey] = frozenset(),
) -> Rows[TokenizedExample]:
    """Read prepared demonstrations as tokens; those that do not fit are filtered out by reason.

    Dialogues that are set ``apart`` are not read.
    """
    examples = tokenize_records(
        (
            row
            for row in iterate_records(source, Demonstration)
            if not apart or dialogue_key(row.prompt) not in apart
        ),
        partial(renderer.demonstration, all_turns=config.sft.loss_on == "assistant_turns"),
        length=attrgetter("num_tokens"),
        max_length=config.model.max_length,
        filtered=directory / f"set-aside-{source.path.stem}.jsonl",
    )
    return keep_rows(TokenizedExample, examples, directory)
