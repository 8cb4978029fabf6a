"""`rlhf prepare`, `sft`, `reward`, `policy`, `evaluate`: one stage alone, inputs by reference."""

import shlex
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_core.stages.distributed.peers import notifying_peers
from rlhf_flows.commands.nodes import as_started, follow
from rlhf_flows.commands.options import (
    ConfigPath,
    DatasetOption,
    DryRunOption,
    ForceOption,
    JsonOption,
    JudgeOption,
    LogLevel,
    NewRunOption,
    Overrides,
    PolicyOption,
    RewardOption,
    RunIdOption,
    SftOption,
    begin,
    check_servers,
    read_settings,
    resumable,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlhf_core.config import GatedStage, PipelineConfig
    from rlhf_core.schema import StageName, StageResult
    from rlhf_flows.engine.dry_run import DryRun
    from rlhf_flows.engine.inputs import ModelInputs
    from rlhf_flows.engine.runs.settings import RunSettings


class Role(StrEnum):
    """What a reward model is for."""

    reward = "reward"
    judge = "judge"


RoleOption = Annotated[
    Role, typer.Option("--role", help="reward: what PPO optimises; judge: decides promotion.")
]


def add_to(app: typer.Typer) -> None:
    """Add the stage commands to the command line."""
    for command, example in (
        (prepare, "rlhf prepare configs/demo.yaml"),
        (sft, "rlhf sft configs/demo.yaml --set sft.num_epochs=1"),
        (reward, "rlhf reward configs/demo.yaml --sft models:/rlhf-sft@candidate --role judge"),
        (policy, "rlhf policy configs/demo.yaml --sft models:/rlhf-sft/3"),
        (evaluate, "rlhf evaluate configs/demo.yaml --policy models:/rlhf-policy@champion"),
    ):
        app.command(epilog=f"Example: {example}")(command)


def prepare(
    config: ConfigPath,
    overrides: Overrides = None,
    run_id: RunIdOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Validate the raw data and publish a dataset version."""
    begin(log_level, uses_servers=not dry_run)
    settings = read_settings(config, overrides)
    if dry_run:
        from rlhf_flows.commands.tables import show_planned
        from rlhf_flows.engine.dry_run import plan_preparation

        planned = plan_preparation(settings.load_preparation())
        write_json(planned, json_file)
        show_planned([planned])
        return
    from rlhf_flows.commands.tables import show_preparation, show_splits

    if run_id is None:
        # DVC calls this with no server and no run: data preparation belongs to neither.
        from rlhf_core.stages.prepare import prepare_data

        splits = prepare_data(settings.load_preparation())
    else:
        from rlhf_flows.commands.local import in_this_process
        from rlhf_flows.engine.inputs import PrepareInputs
        from rlhf_flows.engine.prefect_server import check_prefect
        from rlhf_flows.stages import prepare_stage

        check_prefect()
        with in_this_process():
            splits = prepare_stage(settings, PrepareInputs(run=run_id, force=force))
    write_json(splits, json_file)
    show_splits(splits)
    show_preparation(splits.report)


def sft(
    context: typer.Context,
    config: ConfigPath,
    dataset: DatasetOption = None,
    overrides: Overrides = None,
    run_id: RunIdOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Train the SFT model. Exit status 1 if its gate says no."""
    settings = _start(config, overrides, log_level, dry_run=dry_run, role="sft", run_id=run_id)
    if dry_run:
        from rlhf_flows.engine.inputs import SftInputs

        _plan(settings, run_id, "sft", SftInputs(dataset=dataset, force=force), json_file)
        return
    with notifying_peers(settings.config, "sft"), resumable(context, settings, run_id) as run:
        from rlhf_flows.engine.inputs import SftInputs
        from rlhf_flows.stages import sft_stage

        result = sft_stage(settings, SftInputs(run=run, dataset=dataset, force=force))
    _finish("sft", result, run, json_file)


def reward(
    context: typer.Context,
    config: ConfigPath,
    role: RoleOption = Role.reward,
    dataset: DatasetOption = None,
    sft: SftOption = None,
    overrides: Overrides = None,
    run_id: RunIdOption = None,
    new_run: NewRunOption = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Train the reward model, or the judge. Exit status 1 if its gate says no."""
    settings = _start(config, overrides, log_level, dry_run=dry_run, role=role.value, run_id=run_id)
    from rlhf_flows.engine.inputs import RewardInputs

    inputs = RewardInputs(new_run=new_run, dataset=dataset, sft=sft, role=role.value, force=force)
    if dry_run:
        _plan(settings, run_id, role.value, inputs, json_file)
        return
    told = notifying_peers(settings.config, role.value)
    with told, resumable(context, settings, run_id, may_begin=new_run) as run:
        from rlhf_flows.stages import reward_stage

        result = reward_stage(settings, inputs.model_copy(update={"run": run}))
    _finish(role.value, result, run, json_file)


def policy(
    context: typer.Context,
    config: ConfigPath,
    dataset: DatasetOption = None,
    sft: SftOption = None,
    reward: RewardOption = None,
    judge: JudgeOption = None,
    overrides: Overrides = None,
    run_id: RunIdOption = None,
    new_run: NewRunOption = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Optimise the policy, with PPO or DPO as the settings say; the judge chooses a checkpoint."""
    settings = _start(config, overrides, log_level, dry_run=dry_run, role="policy", run_id=run_id)
    from rlhf_flows.engine.inputs import PolicyInputs

    inputs = PolicyInputs(
        new_run=new_run, dataset=dataset, sft=sft, reward=reward, judge=judge, force=force
    )
    if dry_run:
        _plan(settings, run_id, "policy", inputs, json_file)
        return
    told = notifying_peers(settings.config, "policy")
    with told, resumable(context, settings, run_id, may_begin=new_run) as run:
        from rlhf_flows.stages import policy_stage

        result = policy_stage(settings, inputs.model_copy(update={"run": run}))
    write_json(result, json_file)
    from rlhf_flows.commands.tables import show_line, show_stage

    show_stage("policy", result)
    changes = [word for change in overrides or () for word in ("--set", change)]
    show_line("next: " + shlex.join(["rlhf", "evaluate", str(config), *changes, "--run-id", run]))


def evaluate(
    context: typer.Context,
    config: ConfigPath,
    dataset: DatasetOption = None,
    policy: PolicyOption = None,
    sft: SftOption = None,
    reward: RewardOption = None,
    judge: JudgeOption = None,
    overrides: Overrides = None,
    run_id: RunIdOption = None,
    new_run: NewRunOption = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Compare the policy with SFT and apply the gates. Exit status 1 if they say no."""
    settings = _start(config, overrides, log_level, dry_run=dry_run)
    from rlhf_flows.engine.inputs import EvaluateInputs

    inputs = EvaluateInputs(
        new_run=new_run,
        dataset=dataset,
        policy=policy,
        sft=sft,
        reward=reward,
        judge=judge,
        force=force,
    )
    if dry_run:
        _plan(settings, run_id, "evaluate", inputs, json_file)
        return
    with resumable(context, settings, run_id, may_begin=new_run) as run:
        from rlhf_flows.stages import evaluate_stage

        result = evaluate_stage(settings, inputs.model_copy(update={"run": run}))
    _finish("evaluate", result, run, json_file)


def _start(
    config: Path,
    overrides: list[str] | None,
    log_level: str,
    *,
    dry_run: bool,
    role: "GatedStage | None" = None,
    run_id: str | None = None,
) -> "RunSettings":
    """Begin a command; that of a training ends here on every node but the first."""
    begin(log_level, uses_servers=not dry_run, once=role is None)
    settings = read_settings(config, overrides)
    if role is not None:
        settings = as_started(settings, role)
        if not dry_run:
            follow(settings.config, role, run_id)
    if not dry_run:
        told = (
            nullcontext()
            if role is None
            else notifying_peers(settings.config, role, trains_after=True)
        )
        with told:
            check_servers(settings.config, evaluates=role is None)
    return settings


def _plan(
    settings: "RunSettings",
    run_id: str | None,
    stage: "StageName",
    inputs: "ModelInputs",
    json_file: Path | None,
) -> None:
    """Print what a stage would do."""
    from rlhf_flows.engine.dry_run import plan_stage

    config = settings.config
    show_dry_run(
        config,
        lambda: plan_stage(config, run_id, stage, inputs),
        json_file,
        evaluates=stage == "evaluate",
    )


def show_dry_run(
    config: "PipelineConfig",
    plan: "Callable[[], DryRun]",
    json_file: Path | None,
    *,
    check_inputs: bool = False,
    evaluates: bool = True,
) -> None:
    """Print what a command would do, and what would end it before its first stage.

    Raises:
        RlhfError: what would end it.
    """
    from rlhf_core.adapters.registry.only_looking import only_looking
    from rlhf_core.errors import RlhfError
    from rlhf_flows.commands.tables import show_line, show_planned

    problem = None
    with only_looking():
        try:
            check_servers(config, check_inputs=check_inputs, evaluates=evaluates)
        except RlhfError as error:
            problem = error
        try:
            found = plan()
        except RlhfError as error:
            raise (problem or error) from None
    write_json(found.model_copy(update={"problem": problem and str(problem)}), json_file)
    show_line(f"run {found.run_id}, settings sha256 {found.config_sha256[:12]}")
    show_planned(found.stages)
    if problem is not None:
        raise problem
    show_line("dry run: nothing was changed")


def _finish(name: str, result: "StageResult", run: str, json_file: Path | None) -> None:
    """Print the stage and leave with the exit status its gates ask for."""
    write_json(result, json_file)
    from rlhf_flows.commands.tables import show_decision, show_line, show_stage

    show_stage(name, result)
    decision = result.judgement
    show_decision(decision.verdict, decision.reasons, name)
    show_line(f"run {run}; its page: rlhf report {run}")
    if name == "evaluate" and decision.verdict == "PROMOTE" and result.model.registered:
        show_line(f"next: rlhf promote {result.model.uri}")
    raise typer.Exit(0 if decision.verdict == "PROMOTE" else 1)
