"""`rlhf runs`: which runs there are, and what two of them differ in."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_flows.commands.options import Commands, JsonOption, begin, write_json

if TYPE_CHECKING:
    from rlhf_core.schema import Estimate

runs_app = typer.Typer(
    name="runs",
    cls=Commands,
    help="Runs: list them, compare two.",
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

    from rlhf_core.adapters.registry import aliases_by_run
    from rlhf_core.adapters.tracking import check_server
    from rlhf_flows.commands.tables import show_line, show_table
    from rlhf_flows.engine.past_runs import list_runs

    if not runs.is_dir():
        found = list_runs(runs, {})
    else:
        check_server()
        found = list_runs(runs, aliases_by_run())
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
            run.verdict,
            size(run.disk_bytes),
            " ".join(run.aliases),
        )
    show_table(table)
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
    from rlhf_flows.engine.past_runs import compare_runs

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


def size(num_bytes: float) -> str:
    """Return bytes as people read them: 1 KiB is 1,024 bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def _measured(estimate: "Estimate | None") -> str:
    if estimate is None:
        return "not measured"
    return (
        f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}] "
        f"({estimate.confidence:.0%}, n = {estimate.num_samples:,})"
    )
