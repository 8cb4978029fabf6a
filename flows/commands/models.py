"""`rlhf promote`, `rollback`, `lineage`, `report`, `doctor`: look at models and runs."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf_flows.commands.options import JsonOption, LogLevel, ModelArgument, begin, write_json

ProjectOption = Annotated[
    str, typer.Option("--project", help="Prefix of the registered model names.")
]
ReviewerOption = Annotated[
    str | None, typer.Option(help="Who decides; default: the name you are logged in with.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands that look at models and runs to the command line."""
    for command, example in (
        (promote, "rlhf promote models:/rlhf-policy@candidate"),
        (rollback, 'rlhf rollback --to 3 --comment "the newest one is rude"'),
        (gates, "rlhf gates --require required-gates.yaml"),
        (lineage, "rlhf lineage models:/rlhf-policy@champion"),
        (report, "rlhf report 20260131-101500-3fa2"),
        (doctor, "rlhf doctor --config configs/demo.yaml"),
    ):
        app.command(epilog=f"Example: {example}")(command)


def promote(
    model: ModelArgument,
    reviewer: ReviewerOption = None,
    comment: Annotated[str, typer.Option(help="Why; recorded with the model.")] = "rlhf promote",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would move; nothing is changed.")
    ] = False,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Apply the gates' decision to a registered policy: PROMOTE moves ``champion`` to it.

    Your word counts as the approval where one is asked for, and replaces an earlier refusal.
    Exit status 1 if the gates said HOLD or REJECT; nothing moves then.
    """
    begin(log_level, uses_servers=not dry_run)
    from rlhf_core.adapters.tracking.mlflow_client import has_store
    from rlhf_core.adapters.tracking.tracking import check_server
    from rlhf_core.stages.promote import plan_promotion, promote_model
    from rlhf_flows.commands.tables import show_line, show_record
    from rlhf_flows.engine.events import announce_champion

    if has_store() or not dry_run:
        check_server()
    if dry_run:
        record = plan_promotion(model)
    else:
        record = promote_model(model, reviewer=_who(reviewer), comment=comment)
        if record.moved:
            announce_champion(record.model)
    write_json(record, json_file)
    if dry_run:
        show_line("a promotion would say:")
    show_record(record)
    if dry_run:
        show_line("dry run: nothing was changed")
    raise typer.Exit(0 if record.verdict == "PROMOTE" else 1)


def _who(name: str | None) -> str:
    """Return who decides: a name that is only blanks is none."""
    import getpass

    return (name or "").strip() or getpass.getuser()


def rollback(
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="VERSION", help="Policy version; default: the one before."),
    ] = None,
    reviewer: ReviewerOption = None,
    comment: Annotated[str, typer.Option(help="Why; kept with the release.")] = "rlhf rollback",
    project: ProjectOption = "rlhf",
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Bring an earlier release back: ``champion`` of policy, SFT model, reward model and judge.

    Without --to that is the release before the last promotion. With it, any version that was
    champion once; every alias that somebody moved in MLflow is put where its release says.
    """
    begin(log_level)
    from rlhf_core.adapters.tracking.tracking import check_server
    from rlhf_core.stages.rollback import rollback_policy
    from rlhf_flows.commands.tables import show_record
    from rlhf_flows.engine.events import announce_champion

    check_server()
    record = rollback_policy(project, to=to, reviewer=_who(reviewer), comment=comment)
    announce_champion(record.champion)
    write_json(record, json_file)
    show_record(record)


def gates(
    require: Annotated[
        Path | None,
        typer.Option(help="YAML file: stage to gates, as in the settings; `{}`: none."),
    ] = None,
    project: ProjectOption = "rlhf",
    by: Annotated[
        str | None, typer.Option(help="Who says so; default: the name you are logged in with.")
    ] = None,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Show, or set, the gates a project requires: no run's settings leave them out or weaken them.

    They are kept with the registered model ``<project>-release``: who may promote may set them.
    """
    begin(log_level)
    from rlhf_core.adapters.registry.required_gates import require_gates, requirement
    from rlhf_core.adapters.tracking.tracking import check_server
    from rlhf_core.config.load import load_required_gates
    from rlhf_flows.commands.tables import show_line, show_record

    wanted = None if require is None else load_required_gates(require)
    check_server()
    record = requirement(project) if wanted is None else require_gates(project, wanted, by=_who(by))
    write_json(record, json_file)
    if record.gates:
        show_record(record)
    else:
        said = f", as {record.set_by} said" if record.set_by else ""
        show_line(f"gates: project {project} requires none{said}; `--require FILE` sets some")


def lineage(
    model: ModelArgument, json_file: JsonOption = None, log_level: LogLevel = "info"
) -> None:
    """Show where a model comes from: dataset, runs, versions, gates, alias."""
    begin(log_level)
    from rlhf_core.adapters.registry.lineage import trace_lineage
    from rlhf_core.adapters.tracking.tracking import check_server
    from rlhf_flows.commands.tables import show_lineage

    check_server()
    record = trace_lineage(model)
    write_json(record, json_file)
    show_lineage(record)


def report(
    run: Annotated[str, typer.Argument(help="Run id, a folder name under runs/.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    log_level: LogLevel = "info",
) -> None:
    """Write one self-contained HTML page about a run."""
    begin(log_level)
    from rlhf_core.stages.evaluation.report import write_report
    from rlhf_flows.commands.tables import show_line

    show_line(f"report: {write_report(runs / run)}")


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", help="Check what these settings need as well.")
    ] = None,
    log_level: LogLevel = "warning",
) -> None:
    """Check the set-up and say how to fix what is wrong; exit status 2 if anything is."""
    begin(log_level)
    from rlhf_flows.commands.doctor import examine
    from rlhf_flows.commands.tables import show_findings

    findings = examine(config)
    show_findings(findings)
    raise typer.Exit(0 if all(finding.healthy for finding in findings) else 2)
