"""Options and arguments the commands share, and what every command does first and last."""

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rlhf_core.errors import BusyError, CheckpointError, RlhfError
from rlhf_flows.commands.nodes import require_started_once
from rlhf_flows.commands.start import exit_status

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rlhf_core.config import PipelineConfig
    from rlhf_flows.engine.runs.settings import RunSettings

ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="Settings, for example configs/demo.yaml.", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting: policy.kl_coef=0.1"),
]
RunIdOption = Annotated[
    str | None, typer.Option("--run-id", help="Go on with this run; finished stages are kept.")
]
NewRunOption = Annotated[
    bool,
    typer.Option("--new-run", help="Let --run-id name a run that does not exist, and begin it."),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result record here.")
]
KeepOption = Annotated[
    float,
    typer.Option(
        "--min-kept-fraction",
        min=0.0,
        max=1.0,
        help="Refuse a version with fewer rows than this share of the last one's.",
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Repeat the stage even if nothing changed.")
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Only say which stages would run, from what; nothing is changed."
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="data-vN|DIRECTORY[@SHA256]",
        help="Published version or prepared folder; default: the run's, else the raw data.",
    ),
]
LogLevel = Annotated[
    str,
    typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error."),
]


logger = logging.getLogger(__name__)
_CHOSEN = ContextVar("chosen", default="")
"""The command that runs, as it is written."""


class Commands(TyperGroup):
    """Commands of which the chosen one says at once that it runs, and that it was stopped."""

    # Any: the types of typer's own copy of click have no public names.
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, and remember it for ``begin``."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            _CHOSEN.set(f"{ctx.command_path} {name}")
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; one that a signal stopped leaves with its status."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo("\nstopped", err=True)
            raise typer.Exit(exit_status(stop)) from None


def model_option(role: str) -> typer.models.OptionInfo:
    """Return the option that names a model by reference."""
    option: typer.models.OptionInfo = typer.Option(
        f"--{role}",
        metavar="MODEL",
        help=f"{role} model: models:/NAME/VERSION, models:/NAME@ALIAS or a directory; "
        "default: the run's, else the registry's candidate, else its champion.",
    )
    return option


SftOption = Annotated[str | None, model_option("sft")]
RewardOption = Annotated[str | None, model_option("reward")]
JudgeOption = Annotated[str | None, model_option("judge")]
PolicyOption = Annotated[str | None, model_option("policy")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="models:/NAME/VERSION, models:/NAME@ALIAS", show_default=False
    ),
]


def begin(log_level: str, *, uses_servers: bool = True, once: bool = True) -> None:
    """Set environment and logging up; before anything heavy is imported.

    Args:
        log_level: of the project's own lines.
        uses_servers: keep Prefect's folder in the working directory, and warn where servers run
            that the command does not know of; one that needs neither leaves nothing behind.
        once: refuse to be one of several copies; a training may be one on each node.

    Raises:
        ConfigError: a launcher started several copies.
    """
    from rlhf_flows.engine.logs import configure_logging

    levels = ("debug", "info", "warning", "error")
    if log_level.lower() not in levels:
        raise typer.BadParameter(f"--log-level {log_level!r}: expected one of {', '.join(levels)}")
    configure_logging(log_level)
    say_what_begins()
    if once:
        require_started_once()
    if not uses_servers:
        from rlhf_core.adapters.settings import set_environment_defaults

        set_environment_defaults()
        return
    from rlhf_flows.engine.environment import prepare_environment

    prepare_environment()
    warn_of_unused_servers()


def say_what_begins() -> None:
    """Log which command begins: nothing more is heard while its first libraries are imported."""
    if command := _CHOSEN.get():
        logger.info("%s started; loading its libraries takes some seconds", command)


def warn_of_unused_servers() -> None:
    """Say which exports are missing where `rlhf up` runs here; nobody is switched to it unasked."""
    from rlhf_flows.engine.environment import STATE

    if not (STATE / "servers.json").exists():
        return
    from rlhf_core.adapters.settings import load_settings
    from rlhf_flows.servers.servers import known_servers

    servers, said = known_servers(), load_settings().model_fields_set
    if servers is None or servers.supervisor.find() is None:
        return
    exports = {
        "prefect_api_url": f"{servers.prefect_url}/api",
        "mlflow_tracking_uri": servers.mlflow_url,
    }
    missing = [f"{name.upper()}={url}" for name, url in exports.items() if name not in said]
    if missing:
        advice = f"export {' '.join(missing)}"
        typer.echo(f"warning: servers run here and are not used; to use them: {advice}", err=True)


def read_settings(config: Path, overrides: list[str] | None) -> "RunSettings":
    """Return the settings that the command line names.

    Raises:
        ConfigError: one of ``overrides`` is no KEY=VALUE, or says what another one does.
    """
    from rlhf_core.config.written import split_settings
    from rlhf_flows.engine.runs.settings import RunSettings

    split_settings(overrides or ())
    return RunSettings(file=config, overrides=tuple(overrides or ()))


def check_servers(
    config: "PipelineConfig", *, check_inputs: bool = False, evaluates: bool = True
) -> None:
    """Fail in one line now rather than in a traceback after an hour of training.

    Inside ``only_looking`` as far as that goes without writing.

    Args:
        config: settings of the run.
        check_inputs: look at raw files and base model, too.
        evaluates: the command asks the suites, tasks of lm-evaluation-harness among them.

    Raises:
        RlhfError: a server is lost or refuses; an input cannot be used.
    """
    from rlhf_core.adapters.registry.access import check_access
    from rlhf_core.adapters.registry.only_looking import is_only_looking
    from rlhf_core.adapters.tracking.mlflow_client import has_store
    from rlhf_core.adapters.tracking.tracking import check_server
    from rlhf_core.stages import preflight
    from rlhf_flows.engine.prefect_server import check_prefect

    if has_store() or not is_only_looking():
        check_server()
    check_prefect()
    if check_inputs:
        preflight.check_inputs(config)
    else:
        preflight.check_suites(config, tasks=evaluates)
    if not is_only_looking():
        check_access(config.project, patience=0)


def write_json(record: "BaseModel", path: Path | None) -> None:
    """Write the result record where ``--json`` asks for it."""
    from rlhf_core.storage.records import write_record

    if path is not None:
        write_record(path, record)


def typed_again(context: typer.Context, **changes: str) -> str:
    """Return the command line of the command that runs now, with every option that was given.

    Args:
        context: of the command.
        changes: options that are to have another value, or to be there: ``run_id="one"``.
    """
    words = ["rlhf", *context.command_path.split()[1:]]
    left = dict(changes)
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        given = context.params[name] if source and source.name == "COMMANDLINE" else None
        value = left.pop(name, given)
        if value in (None, False, (), [], ""):
            continue
        option = [] if parameter.param_type_name == "argument" else parameter.opts[:1]
        for one in value if isinstance(value, list | tuple) else (value,):
            words += option if one is True else [*option, str(getattr(one, "value", one))]
    return shlex.join(words)


@contextmanager
def resumable(
    typed: typer.Context, settings: "RunSettings", run_id: str | None, *, may_begin: bool = True
) -> Iterator[str]:
    """Open the run, and say how to go on with it if the block does not finish.

    A run that this command began and that came to nothing leaves no folder.

    Args:
        typed: the command, as it was typed.
        settings: as the command line names them.
        run_id: the run to go on with, or the name of a new one.
        may_begin: whether it may be the name of a new one; else a misspelt one is refused.

    Raises:
        ConfigError: there is no such run, and it may not begin; or it has other settings.
    """
    from rlhf_flows.commands.local import in_this_process
    from rlhf_flows.engine.runs.folder import discard_unstarted, locate_run, open_run
    from rlhf_flows.engine.runs.locks import in_use

    config = settings.config
    if run_id is not None and not may_begin:
        from rlhf_flows.engine.runs.in_prefect import find_run

        find_run(config, run_id)
    is_new = run_id is None or not locate_run(run_id, config.runs).directory.exists()
    context = open_run(config, run_id)
    started = time.time()

    def go_on() -> str:
        # What --force archives is done by then; given again it would archive this attempt too.
        marks = context.directory.glob(".*.forced-by")
        has_forced = any(mark.stat().st_mtime >= started for mark in marks)
        done = {"force": ""} if has_forced else {}
        return typed_again(typed, run_id=context.run_id, new_run="", **done)

    try:
        with in_this_process(), in_use(context):
            yield context.run_id
    except KeyboardInterrupt as stop:
        typer.echo(f"\nstopped; go on with: {go_on()}", err=True)
        raise typer.Exit(exit_status(stop)) from None
    except Exception as error:
        # A checkpoint is somebody's work, perhaps of a process that is at it now.
        refused = isinstance(error, RlhfError) and not isinstance(error, CheckpointError)
        gone = is_new and refused and discard_unstarted(context)
        if not (gone or isinstance(error, BusyError)):
            typer.echo(f"not finished; go on with: {go_on()}", err=True)
        raise
