"""What can be known to be wrong before anything is written or trained."""

from rlhf_core.config import FunctionTermConfig, PipelineConfig
from rlhf_core.config.functions import function_sha256
from rlhf_core.stages.models.base_model import check_base
from rlhf_core.stages.models.renderers import base_renderer, require_no_clock
from rlhf_core.stages.preparation.inputs import require_paths
from rlhf_core.stages.prepare import require_own_folders


def check_suites(config: PipelineConfig, *, tasks: bool = True) -> None:
    """Read the suites, where there are any.

    Args:
        config: settings of the run.
        tasks: load those of lm-evaluation-harness, too, which takes seconds.

    Raises:
        DataError: a list or a task's data are missing or broken; file and line.
        ConfigError: a gate asks about a tag that no item has; a task cannot be used here.
    """
    if config.evaluation.suites:
        from rlhf_core.stages.evaluation import suites

        suites.check_suites(config, tasks=tasks)


def check_inputs(config: PipelineConfig) -> None:
    """Refuse a run whose base model or raw files cannot serve.

    A dataset of the hub is first asked for when it is read, and a published version
    (``data.version``) needs no raw file at all.

    Raises:
        ConfigError: a reward function's file is not there, or may not be loaded here; a gate asks
            about a part of a suite that does not exist.
        DataError: a raw file does not exist, or preparation would replace what it did not make.
        ModelError: the base model has no tokenizer, EOS or chat template, is no causal model, needs
            code that is not trusted, or has fewer positions than ``model.max_length``.
    """
    check_suites(config)
    if config.data.version is None:
        require_paths(config.data)
        require_own_folders(config)
    for index, term in enumerate(config.policy.rewards):
        if isinstance(term, FunctionTermConfig):
            function_sha256(f"policy.rewards.{index}", term.function)
    if config.evaluation.best_of_k is not None:
        from rlhf_core.stages.evaluation.best_of_k import read_choices

        read_choices(config.evaluation.best_of_k)
    renderer = base_renderer(config.model)
    check_base(config.model)
    if config.data.version is None and not config.data.cleaning.tokens:
        require_no_clock(renderer)
