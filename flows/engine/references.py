"""References to the things themselves: datasets checked by digest, models by registry version."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from rlhf_core.adapters.registry import decision, registry
from rlhf_core.config import OWN_JUDGE, VERSION_NAME, PipelineConfig, judges_of
from rlhf_core.config.stages import STAGES, reads_of
from rlhf_core.errors import ConfigError, DataError, RegistryError
from rlhf_core.schema import DatasetSplits, ModelRef, ModelRole, RunContext, StageName, StageResult
from rlhf_core.schema.model_uri import alias_uri, is_model_uri
from rlhf_core.stages import promote
from rlhf_core.storage.model_folders import folder_kind
from rlhf_flows.engine.environment import STATE
from rlhf_flows.engine.inputs import ModelInputs
from rlhf_flows.engine.runs.stage_folder import saved_result

Resolve = Callable[[str], ModelRef]
"""Finds a model by reference."""


def dataset_reference(splits: DatasetSplits) -> str:
    """Return the reference that finds exactly this version again or fails."""
    return f"{splits.directory}@{splits.sha256}"


def find_dataset(
    config: PipelineConfig, context: RunContext | None, given: str | None
) -> DatasetSplits:
    """Return the dataset a stage reads.

    Args:
        config: settings of the run.
        context: the run; None where there is none.
        given: ``data-vN``, ``DIRECTORY`` or ``DIRECTORY@SHA256``; None takes what the run prepared,
            if it is still there.

    Raises:
        DataError: the directory holds another version than the reference asks for.
    """
    from rlhf_core.stages.preparation.dataset import read_splits
    from rlhf_core.stages.prepare import prepare_data
    from rlhf_core.stages.versions.versions import fetch_version

    if given is None:
        saved = saved_result(context, "prepare", DatasetSplits) if context else None
        if saved is None:
            return prepare_data(config)
        given = dataset_reference(saved)
    if re.fullmatch(VERSION_NAME, given):
        return fetch_version(given)
    directory, _, sha256 = given.partition("@")
    if sha256 and not Path(directory).is_dir():
        return _made_again(config, directory, sha256)
    splits = read_splits(Path(directory))
    kept = Path(f"{directory}-{sha256[:12]}")
    if not splits.sha256.startswith(sha256) and kept.is_dir():
        splits = read_splits(kept)  # a run from before each dataset had its own folder
    if not splits.sha256.startswith(sha256):
        raise DataError(
            f"{directory}: holds dataset {splits.sha256[:12]}, expected {sha256[:12]}; it was "
            f"prepared again since. Repeat the run on it (repeat_from: prepare, or `rlhf prepare "
            f"CONFIG --run-id {context.run_id if context else 'ID'} --force`), start a new one, or "
            "bring the old version back with dvc"
        )
    return splits


def _made_again(config: PipelineConfig, directory: str, sha256: str) -> DatasetSplits:
    """Prepare on this machine what another one prepared: the same bytes from the same raw data.

    Raises:
        DataError: this clone's raw data make another dataset.
    """
    from rlhf_core.stages.prepare import prepare_data

    splits = prepare_data(config)
    if not splits.sha256.startswith(sha256):
        raise DataError(
            f"{directory} is not on this machine, and its own raw data make dataset "
            f"{splits.sha256[:12]}, expected {sha256[:12]}: bring the clones to the same commit "
            "(git pull, dvc pull), or publish the data and set data.version"
        )
    return splits


def check_roles(inputs: ModelInputs) -> None:
    """Refuse a model that was given as what it is not, before the run is opened or data prepared.

    Raises:
        RegistryError: a version was trained as something else; says as what.
    """
    for role, given in given_models(inputs).items():
        registry.check_role(given, (role,), f"it was given as {role}")


def given_models(inputs: ModelInputs) -> dict[ModelRole, str]:
    """Return the models that a form names, by role."""
    named = {role: getattr(inputs, role, None) for role in get_args(ModelRole)}
    return {role: given for role, given in named.items() if given is not None}


def resolve_model(uri: str) -> ModelRef:
    """Registry URI or directory to a model whose weights lie on this machine."""
    runs = PipelineConfig.model_fields["runs"].default
    return registry.resolve_model(uri, cache=STATE / "models", runs=runs)


def find_models(
    stage: StageName,
    config: PipelineConfig,
    context: RunContext,
    given: Mapping[ModelRole, str],
    resolve: Resolve = resolve_model,
) -> dict[str, ModelRef]:
    """Return the models that a stage reads, by role, as the settings are.

    A policy that is evaluated brings the champion it has to beat, if there is one.

    Args:
        stage: who reads them.
        config: settings of the run.
        context: the run.
        given: those that were given by reference.
        resolve: finds a model by reference; ``registry.look_up_model`` brings no files here.
    """
    reads, judge = reads_of(stage, config), given.get("judge")
    models: dict[str, ModelRef] = {
        role: find_model(config, context, role, given.get(role), resolve)
        for role in get_args(ModelRole)
        if role in reads and role != "judge"
    }
    if "policy" in reads:
        champion = find_champion(config, models["policy"], resolve)
        models |= {"champion": champion} if champion else {}
        models["judge"] = find_judge(config, context, champion, judge, resolve)
    elif "judge" in reads:
        models["judge"] = _find_chooser(config, context, judge, resolve)
    return models


def find_scorers(
    stage: StageName, config: PipelineConfig, resolve: Resolve = resolve_model
) -> dict[str, ModelRef]:
    """Return the models that ``policy.rewards`` names, by that name, if the stage reads them.

    Raises:
        ModelError: there is no such folder, and the hub does not give one.
        RegistryError: there is no such version, or it was not trained as a reward model.
    """
    terms = config.policy.rewards
    if "rewards" not in STAGES[stage].sources or not terms:
        return {}
    from rlhf_core.stages.training import reward_terms

    return reward_terms.find_scorers(terms, resolve)


def find_model(
    config: PipelineConfig,
    context: RunContext,
    role: ModelRole,
    given: str | None,
    resolve: Resolve = resolve_model,
) -> ModelRef:
    """Return the model that plays ``role``: the one given, the run's own, or the registry's.

    Raises:
        RegistryError: no reference was given and neither the run nor the registry has one.
    """
    if given is not None:
        return resolve(given)
    return _made_by_run(context, role, resolve) or _aliased(config, role, resolve)


def find_choosers(
    config: PipelineConfig, trained: Sequence[ModelRef] = (), resolve: Resolve = resolve_model
) -> list[ModelRef]:
    """Return the reward models that choose pairs by disagreeing; none where nobody is to choose.

    Those that ``feedback.choice`` names; else those just trained; else the project's reward model
    and judge, by alias.

    Raises:
        RegistryError: there is no such version, or it was trained as something else.
        ModelError: there is no such folder, and the hub does not give one.
    """
    choice = config.feedback_settings().choice
    if choice is None:
        return []
    if not choice.models:
        roles: tuple[ModelRole, ModelRole] = ("reward", "judge")
        return list(trained) or [_aliased(config, role, resolve) for role in roles]
    key, found = "feedback.choice.models", []
    for name in choice.models:
        if is_model_uri(name):
            registry.check_role(name, ("reward", "judge"), f"{key} names it")
        if is_model_uri(name) or (Path(name).is_dir() and folder_kind(Path(name)) == "scalar"):
            found.append(resolve(name))
            continue
        from rlhf_core.models.classifier import outside_model

        found.append(outside_model(key, name))
    return found


def find_champion(
    config: PipelineConfig, policy: ModelRef, resolve: Resolve = resolve_model
) -> ModelRef | None:
    """Return the champion that ``policy`` has to beat; None where there is none yet."""
    uri = promote.bar_for(policy, config.project)
    return None if uri is None else resolve(uri)


def find_judge(
    config: PipelineConfig,
    context: RunContext,
    champion: ModelRef | None,
    given: str | None,
    resolve: Resolve = resolve_model,
) -> ModelRef:
    """Return who decides: the judge given, the settings', or that of the champion's release.

    One judge for one champion after the other keeps the measure the same; ``evaluation.judge``
    names another, which then scores the champion's answers too.

    Raises:
        ConfigError: one judge is given, and ``evaluation.judge`` names another.
    """
    judge_specs = judges_of(config.evaluation.judge)
    if given and judge_specs not in ((), (given,)):
        raise ConfigError(
            f"judge {given}: evaluation.judge of the settings names another; give one of the two"
        )
    judge_specs = (given,) if given else judge_specs
    if not judge_specs and champion is not None and champion.registered:
        judge_specs = tuple(filter(None, (decision.judge_of(champion.uri),)))
    if all(isinstance(spec, str) for spec in judge_specs) and len(judge_specs) < 2:
        named = next(filter(None, judge_specs), OWN_JUDGE)
        own = None if named == OWN_JUDGE else str(named)
        return find_model(config, context, "judge", own, resolve)
    from rlhf_core.stages.evaluation.judging import judges_together, outside_judge

    judges = [
        find_model(config, context, "judge", None if spec == OWN_JUDGE else spec, resolve)
        if isinstance(spec, str)
        else outside_judge(spec)
        for spec in judge_specs
    ]
    return judges_together(judges)


def _find_chooser(
    config: PipelineConfig, context: RunContext, given: str | None, resolve: Resolve
) -> ModelRef:
    """Return who chooses the checkpoint: the judge given, the settings', or the run's own.

    Never that of the champion's release: a policy would be trained again when the champion moves.
    """
    try:
        return find_judge(config, context, None, given, resolve)
    except RegistryError as error:
        raise RegistryError(
            f"{error}. The judge chooses which checkpoint is offered; policy.selection.num_prompts:"
            " 0 offers the last one"
        ) from error


def _made_by_run(context: RunContext, role: ModelRole, resolve: Resolve) -> ModelRef | None:
    result = saved_result(context, role, StageResult)
    model = None if result is None else result.model
    if model is not None and not model.path.is_dir():
        return resolve(model.uri)  # trained on another machine
    return model


def _aliased(config: PipelineConfig, role: ModelRole, resolve: Resolve) -> ModelRef:
    problems = []
    for alias in ("candidate", "champion"):
        found = alias_uri(f"{config.project}-{role}", alias)
        try:
            registry.check_role(found, (role,), f"it was looked up as {role}")
            return resolve(found)
        except RegistryError as error:
            problems.append(str(error))
    command = "reward CONFIG --role judge" if role == "judge" else f"{role} CONFIG"
    raise RegistryError(
        f"no {role} model to start from: run `rlhf {command}` first, or give one by reference "
        f"({'; '.join(problems)})"
    )
