"""`rlhf up`, `down`, `deploy`, `notify`: servers and workers here, deployments on any server."""

import re
from typing import Annotated

import typer

from rlhf_flows.commands.options import LogLevel, begin

PrefectPort = Annotated[
    int | None,
    typer.Option(
        "--prefect-port", envvar="RLHF_PREFECT_PORT", help="Default: 4200, or a free one."
    ),
]
MlflowPort = Annotated[
    int | None,
    typer.Option("--mlflow-port", envvar="RLHF_MLFLOW_PORT", help="Default: 5000, or a free one."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command, example in (
        (up, "rlhf up --prefect-port 4300 --mlflow-port 5100"),
        (down, "rlhf down"),
        (notify, "rlhf notify https://hooks.slack.com/services/A/B/C --name team"),
        (deploy, "PREFECT_API_URL=https://prefect.example.org/api rlhf deploy"),
    ):
        app.command(epilog=f"Example: {example}")(command)


def up(
    prefect_port: PrefectPort = None,
    mlflow_port: MlflowPort = None,
    log_level: LogLevel = "info",
) -> None:
    """Start Prefect, MLflow and workers here, deploy every flow, print the addresses."""
    begin(log_level, uses_servers=False)
    from rlhf_flows.commands.tables import show_line
    from rlhf_flows.servers.servers import LOGS, start_servers

    servers = start_servers(prefect_port, mlflow_port)
    show_line(f"Prefect  {servers.prefect_url}")
    show_line(f"MLflow   {servers.mlflow_url}")
    show_line(f"logs     {LOGS.absolute()}")
    show_line("stop     rlhf down")
    show_line("\nto run `rlhf` commands against them:")
    show_line(f"  export PREFECT_API_URL={servers.prefect_url}/api")
    show_line(f"  export MLFLOW_TRACKING_URI={servers.mlflow_url}")


def down(log_level: LogLevel = "info") -> None:
    """End exactly what `rlhf up` started from this directory."""
    begin(log_level, uses_servers=False)
    from rlhf_flows.commands.tables import show_line
    from rlhf_flows.servers.servers import stop_servers

    ended = stop_servers()
    show_line(f"ended: {', '.join(ended)}" if ended else "nothing was running")


def deploy(
    pool_type: Annotated[
        str, typer.Option("--pool-type", help="Type of work pools that do not exist yet.")
    ] = "process",
    watch_heartbeats: Annotated[
        bool, typer.Option(help="Mark runs without heartbeat as crashed; not on SQLite.")
    ] = False,
    log_level: LogLevel = "info",
) -> None:
    """Apply prefect.yaml to the server of PREFECT_API_URL: pools, deployments, automations."""
    begin(log_level)
    from rlhf_core.adapters.settings import load_settings, without_credentials
    from rlhf_core.errors import ConfigError
    from rlhf_flows.commands.tables import show_line
    from rlhf_flows.servers.deploy import deploy as apply

    url = load_settings().prefect_api_url
    if url is None:
        raise ConfigError("PREFECT_API_URL is not set; `rlhf up` starts a server and deploys to it")
    apply(pool_type=pool_type, watch_heartbeats=watch_heartbeats)
    show_line(f"deployed to {without_credentials(url)}")


def notify(
    address: Annotated[
        str,
        typer.Argument(
            envvar="RLHF_NOTIFY",
            help="Slack's webhook, mailtos://USER:PASSWORD@HOST?to=ADDRESS, another address of "
            "Apprise's, or a web address, which gets JSON with subject and body.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Of the receiver: there may be several.")] = (
        "team"
    ),
    trial: Annotated[bool, typer.Option(help="Send a first message from here.")] = True,
    log_level: LogLevel = "info",
) -> None:
    """Tell somebody of the gates' decisions, and of runs that wait for a person or died."""
    begin(log_level)
    from rlhf_core.adapters.settings import load_settings, without_credentials
    from rlhf_core.errors import ConfigError
    from rlhf_flows.commands.tables import show_line
    from rlhf_flows.servers.notifications import notify as tell

    url = load_settings().prefect_api_url
    if url is None:
        raise ConfigError("PREFECT_API_URL is not set; `rlhf up` starts a server that can tell")
    if not re.fullmatch("[a-z0-9-]+", name):
        raise ConfigError(f"--name {name!r}: expected small letters, digits and hyphens")
    tell(address, name, trial=trial)
    show_line(f"{name} is notified through {without_credentials(url)}; Automations switches it off")
