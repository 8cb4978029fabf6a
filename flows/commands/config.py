"""`rlhf config`: which settings there are, and which are in force."""

from typing import Annotated

import typer

from rlhf_flows.commands.options import (
    Commands,
    ConfigPath,
    JsonOption,
    Overrides,
    begin,
    write_json,
)

config_app = typer.Typer(
    name="config",
    cls=Commands,
    help="Settings: what is in force and where it comes from; what can be set.",
    no_args_is_help=True,
)


@config_app.command(epilog="Example: rlhf config show configs/demo-dpo.yaml --written")
def show(
    config: ConfigPath,
    overrides: Overrides = None,
    written: Annotated[
        bool, typer.Option("--written", help="Leave out what nobody wrote: the defaults.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Check the settings and print each with where it comes from: file and line, --set, default."""
    begin("warning", uses_servers=False)
    from rlhf_core.config import load_with_origins
    from rlhf_core.config.written import split_settings
    from rlhf_flows.commands.tables import show_line

    loaded, settings = load_with_origins(config, split_settings(overrides or ()))
    write_json(loaded, json_file)
    shown = [setting for setting in settings if setting.origin != "default" or not written]
    for setting in shown:
        show_line(f"{f'{setting.key} = {setting.value}':<60}  {setting.origin}")


@config_app.command(epilog="Example: rlhf config explain policy.kl_watch")
def explain(
    key: Annotated[
        str, typer.Argument(metavar="[KEY]", help="A setting, or a section; all without it.")
    ] = "",
) -> None:
    """Say what a setting means and what it is when nobody writes it."""
    begin("warning", uses_servers=False)
    from rlhf_core.config import PipelineConfig
    from rlhf_core.config.reference import all_settings, say_unknown
    from rlhf_core.errors import ConfigError
    from rlhf_flows.commands.tables import show_line

    found = [
        setting
        for setting in all_settings(PipelineConfig)
        if not key or setting.key == key or setting.key.startswith((f"{key}.", f"{key}["))
    ]
    if not found:
        raise ConfigError(f"{key}: {say_unknown(key, PipelineConfig)}")
    for setting in found:
        mark = f" ({setting.only_with})" if setting.only_with else ""
        show_line(f"{setting.key} = {setting.default}{mark}")
        show_line(f"    {setting.description or 'no description'}")
