"""`rlhf`, the command line: thin commands that print what was done and where to look.

Exit codes: 0 done, 1 a gate said no, 2 a deliberate error, one line; a traceback is a bug.
Only the standard library and typer are imported before a command is chosen.
"""

import sys
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Annotated, NoReturn

import typer

from rlhf_core.errors import RlhfError
from rlhf_core.storage.full_disk import storage_error
from rlhf_flows.commands import collect as collect_cli
from rlhf_flows.commands import config as config_cli
from rlhf_flows.commands import init as init_cli
from rlhf_flows.commands import models as model_cli
from rlhf_flows.commands import rounds as rounds_cli
from rlhf_flows.commands import runs as runs_cli
from rlhf_flows.commands import sample as sample_cli
from rlhf_flows.commands import serve as serve_cli
from rlhf_flows.commands import servers as server_cli
from rlhf_flows.commands import stages as stage_cli
from rlhf_flows.commands.options import (
    Commands,
    ConfigPath,
    DryRunOption,
    JsonOption,
    LogLevel,
    Overrides,
    RunIdOption,
    begin,
    check_servers,
    read_settings,
    resumable,
    write_json,
)

app = typer.Typer(
    name="rlhf",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rlhf-pipeline {metadata.version('rlhf-pipeline')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Preference data in, out a model that is better by a measure it was not trained on."""


@app.command(epilog="Example: rlhf run configs/demo.yaml --set policy.kl_coef=0.1")
def run(
    context: typer.Context,
    config: ConfigPath,
    overrides: Overrides = None,
    run_id: RunIdOption = None,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Run the whole pipeline: prepare, SFT, reward model and judge, policy, gates, promotion.

    Needs no server: without PREFECT_API_URL it starts one of its own, without
    MLFLOW_TRACKING_URI a SQLite file here. Exit status 1 if a gate says HOLD or REJECT.
    """
    begin(log_level, uses_servers=not dry_run)
    settings = read_settings(config, overrides)
    if dry_run:
        from rlhf_flows.engine.dry_run import plan_pipeline

        stage_cli.show_dry_run(
            settings.config,
            lambda: plan_pipeline(settings.config, run_id),
            json_file,
            check_inputs=True,
        )
        return
    check_servers(settings.config, check_inputs=True)
    with resumable(context, settings, run_id) as run:
        from rlhf_flows.commands.tables import show_run, show_where
        from rlhf_flows.engine.inputs import PipelineInputs
        from rlhf_flows.pipeline import rlhf_pipeline

        result = rlhf_pipeline(settings, PipelineInputs(run=run))
    write_json(result, json_file)
    show_run(result)
    show_where(result)
    raise typer.Exit(0 if result.verdict == "PROMOTE" else 1)


init_cli.add_to(app)
stage_cli.add_to(app)
collect_cli.add_to(app)
rounds_cli.add_to(app)
model_cli.add_to(app)
sample_cli.add_to(app)
serve_cli.add_to(app)
server_cli.add_to(app)
app.add_typer(config_cli.config_app, name="config")
app.add_typer(runs_cli.runs_app, name="runs")
if find_spec("rlhf_flows.commands.data"):
    app.add_typer(import_module("rlhf_flows.commands.data").data_app, name="data")


def main() -> None:
    """Entry point: a deliberate error, or a full disk, prints one line, a bug its traceback."""
    try:
        app()
    except RlhfError as error:
        _end(error)
    except Exception as error:
        from rlhf_flows.engine.files import places

        full = storage_error(error, places())
        if full is None:
            raise
        _end(full)


def _end(error: RlhfError) -> NoReturn:
    from rlhf_core.schema.shown import shown

    sys.stderr.write(f"error: {shown(' '.join(str(error).split()))}\n")
    raise SystemExit(2) from error
