"""`rlhf runs`: which runs there are, what two of them differ in, and which nothing needs."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from humanize import naturalsize

from rlhf_flows.commands.options import Commands, JsonOption, begin, write_json

if TYPE_CHECKING:
    from rlhf_core.schema import Estimate
    from rlhf_flows.engine.runs.cleaning import Cleaning

runs_app = typer.Typer(
    name="runs",
    cls=Commands,
    help="Runs: list them, compare two, delete those that nothing needs.",
    invoke_without_command=True,
)
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of the runs.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run id, or its folder.")]
_RUNS = Path("runs")


@runs_app.callback()
def runs(context: typer.Context, runs: RunsOption = _RUNS, json_file: JsonOption = None) -> None:
    """Without a command: the list."""
    if context.invoked_subcommand is None:
        list_(runs, json_file)
    elif runs != _RUNS or json_file is not None:
        raise typer.BadParameter(f"give options after {context.invoked_subcommand}")


@runs_app.command("list", epilog="Example: rlhf runs list --json runs.json")
def list_(runs: RunsOption = _RUNS, json_file: JsonOption = None) -> None:
    """List the runs of a folder, oldest first: stages done, verdict, disk, aliases in MLflow."""
    begin("warning")
    from rich.table import Table

    from rlhf_core.adapters.registry.registry import aliases_by_run
    from rlhf_core.adapters.tracking.tracking import check_server
    from rlhf_core.errors import RegistryError
    from rlhf_flows.commands.tables import show_line, show_table
    from rlhf_flows.engine.runs.overview import list_runs

    aliases: dict[str, list[str]] | None = {}
    if runs.is_dir():
        try:
            check_server()
            aliases = aliases_by_run()
        except RegistryError as error:
            aliases = None
            typer.echo(f"warning: aliases are not known: {error}", err=True)
    found = list_runs(runs, aliases)
    write_json(found, json_file)
    if not found.runs:
        show_line(f"{found.directory}: no runs")
        return
    table = Table("run", "started (UTC)", "stages done", "verdict", "disk", "aliases")
    for run in found.runs:
        table.add_row(
            run.run_id,
            f"{run.started:%Y-%m-%d %H:%M}",
            " ".join(run.stages) or "none",
            "running" if run.is_worked_on else run.verdict,
            _size(run.disk_bytes),
            "unknown" if run.aliases is None else " ".join(run.aliases),
        )
    show_table(table)
    show_line(f"{len(found.runs)} runs, {_size(sum(run.disk_bytes for run in found.runs))}")
    for run in found.runs:
        if run.reason:
            show_line(f"{run.run_id}: {run.reason}")


@runs_app.command(epilog="Example: rlhf runs compare 20260131-101500-3fa2 20260201-020000-9c41")
def compare(
    first: RunArgument, second: RunArgument, runs: RunsOption = _RUNS, json_file: JsonOption = None
) -> None:
    """Show which settings of two runs differ, and their metrics with intervals side by side."""
    begin("warning", uses_servers=False)
    from rich.markup import escape
    from rich.table import Table

    from rlhf_flows.commands.tables import show_line, show_table
    from rlhf_flows.engine.runs.overview import compare_runs

    found = compare_runs(first, second, runs)
    write_json(found, json_file)
    settings = Table("setting", *map(escape, found.runs), title="settings that differ")
    for key, values in found.settings.items():
        settings.add_row(escape(key), *map(escape, values))
    if found.settings:
        show_table(settings)
    else:
        show_line("settings: the same")
    if found.datasets[0] == found.datasets[1]:
        show_line(f"data: the same, {(found.datasets[0] or 'not prepared')[:12]}")
    else:
        show_line("data: " + " and ".join((sha or "not prepared")[:12] for sha in found.datasets))
    metrics = Table("metric", *map(escape, found.runs), title="metrics")
    for name, (one, other) in found.metrics.items():
        metrics.add_row(escape(name), escape(_measured(one)), escape(_measured(other)))
    if found.metrics:
        show_table(metrics)
    else:
        show_line("metrics: none measured yet")


@runs_app.command(epilog="Example: rlhf runs clean --older-than 30d --keep-last 5 --yes")
def clean(
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than", metavar="AGE", help="Only runs started so long ago: 30d, 12h."
        ),
    ] = "0d",
    keep_last: Annotated[
        int, typer.Option("--keep-last", min=0, metavar="N", help="Keep the newest N runs.")
    ] = 0,
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="Also runs that were stopped and can be resumed."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete, and do not ask.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show; so it is without --yes where nobody can ask."),
    ] = False,
    runs: RunsOption = _RUNS,
    json_file: JsonOption = None,
) -> None:
    """Show what every run takes and which nothing needs any more; delete those with --yes.

    A run stays that an alias, a release, an approval, a look at held-out prompts that has not
    ended, another run, a collection or a settings file needs, or on which somebody works. MLflow
    keeps its records and models. Files that the pipeline did not write are kept and named.
    """
    begin("warning")
    from rlhf_core.adapters.tracking.tracking import check_server
    from rlhf_flows.commands.tables import show_line
    from rlhf_flows.engine.runs.cleaning import Cleaning, delete_old_runs, look_for_old_runs
    from rlhf_flows.engine.runs.needed import Rule

    if yes and dry_run:
        raise typer.BadParameter("--yes deletes and --dry-run does not: give one of them")
    rule = Rule(older_than=_age(older_than), keep_last=keep_last, unfinished=unfinished)
    if not runs.is_dir():
        write_json(Cleaning(directory=runs.absolute(), runs=()), json_file)
        show_line(f"{runs.absolute()}: no runs")
        return
    check_server()
    found = look_for_old_runs(runs, rule)
    _show_cleaning(found)
    freed = sum(run.freed_bytes for run in found.safe)
    asks = found.safe and not (yes or dry_run) and sys.stdin.isatty()
    if asks and typer.confirm(f"Delete {len(found.safe)} runs and free {_size(freed)}?"):
        yes = True
    if yes and found.safe:
        found = delete_old_runs(found, rule)
        gone = [run for run in found.runs if run.deleted]
        freed = sum(run.freed_bytes for run in gone)
        show_line(f"deleted {len(gone)} runs, freed {_size(freed)}")
        for run in gone:
            for path in run.left:
                show_line(f"kept {path}: the pipeline did not write it")
    elif found.safe:
        show_line(f"nothing deleted; --yes deletes {len(found.safe)} runs and frees {_size(freed)}")
    write_json(found, json_file)


def _show_cleaning(found: "Cleaning") -> None:
    from rich.table import Table

    from rlhf_flows.commands.tables import show_line, show_table

    if not found.runs:
        show_line(f"{found.directory}: no runs")
        return
    table = Table("run", "started (UTC)", "verdict", "disk", "would free")
    for run in found.runs:
        table.add_row(
            run.run_id,
            f"{run.started:%Y-%m-%d %H:%M}",
            run.verdict,
            _size(run.disk_bytes),
            "stays" if run.kept_because else _size(run.freed_bytes),
        )
    show_table(table)
    for run in found.runs:
        if run.kept_because:
            show_line(f"{run.run_id} stays: {'; '.join(run.kept_because)}")
    for run in found.safe:
        for path in run.left:
            show_line(f"{run.run_id}: {path} stays, the pipeline did not write it")
    shared = sum(run.disk_bytes - run.freed_bytes for run in found.safe)
    if shared:
        show_line(f"{_size(shared)} of them stay: files of models in MLflow, and what is not ours")
    show_line(
        f"{len(found.runs)} runs, {_size(sum(run.disk_bytes for run in found.runs))}; "
        f"safe to delete: {len(found.safe)}"
    )


def _age(text: str) -> timedelta:
    """Read ``30d`` or ``12h``."""
    number, unit = text[:-1], {"d": "days", "h": "hours", "w": "weeks"}.get(text[-1:])
    if unit is None or not (number.isascii() and number.isdigit()) or len(number) > 5:
        raise typer.BadParameter(f"--older-than {text!r}: expected a number and h, d or w, as 30d")
    return timedelta(**{unit: int(number)})


def _size(num_bytes: float) -> str:
    return naturalsize(num_bytes, binary=True)


def _measured(estimate: "Estimate | None") -> str:
    if estimate is None:
        return "not measured"
    return (
        f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}] "
        f"({100 * estimate.confidence:.6g}%, n = {estimate.num_samples:,})"
    )
