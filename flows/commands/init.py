"""`rlhf init`: from a base model and files of preferences to a folder that runs."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_flows.commands.options import JsonOption, begin, write_json

if TYPE_CHECKING:
    from rlhf_core.stages.project.new_project import Wanted


class Goal(StrEnum):
    """What the gates ask."""

    attempt = "try"
    better = "better"


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog="Example: rlhf init mine --base models/base --preferences votes.csv --yes")(
        init
    )


def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write; made if it is not there.")
    ] = Path(),
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Model to start from: a folder or hub name."),
    ] = None,
    preferences: Annotated[
        list[str] | None,
        typer.Option("--preferences", metavar="FILE", help="Comparisons; may be repeated."),
    ] = None,
    demonstrations: Annotated[
        str | None,
        typer.Option("--demonstrations", metavar="FILE", help="Default: the preferred answers."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="Default: those of the comparisons."),
    ] = None,
    goal: Annotated[
        Goal | None,
        typer.Option(
            "--goal",
            help="try: gates ask that nothing is broken; better: that the policy is better than "
            "SFT. Default: better from 1,000 dialogues on.",
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option("--project", metavar="NAME", help="Of the models; default: the folder's."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing; take the default of what is not given.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Write settings, templates, dvc.yaml, prefect.yaml and a README for your own data and model.

    Looks at the files, copies them into DIR and makes it a git repository under DVC. Asks for what
    is not given.
    """
    begin("warning", uses_servers=False)
    from rlhf_core.stages.project.new_project import Wanted, init_project
    from rlhf_flows.commands.tables import show_line

    wanted = Wanted(
        base=base or "",
        preferences=tuple(preferences or ()),
        demonstrations=demonstrations,
        prompts=prompts,
        goal=goal.value if goal else None,
        project=project,
    )
    made = init_project(directory, _given(wanted) if yes else _asked(wanted))
    write_json(made, json_file)
    for line in made.lines:
        show_line(line)
    show_line(f"written to {directory.absolute()}: {', '.join(made.files)}")
    go_there = "" if directory.absolute() == Path.cwd() else f"cd {shlex.quote(str(directory))} && "
    show_line(f"next: {go_there}rlhf run {made.settings}    (README.md says the rest)")


def _given(wanted: "Wanted") -> "Wanted":
    """Return what is wanted, where nothing may be asked.

    Raises:
        ConfigError: something that has no default was not given.
    """
    from rlhf_core.errors import ConfigError

    needed = {"--base MODEL": wanted.base, "--preferences FILE": wanted.preferences}
    if missing := [option for option, value in needed.items() if not value]:
        raise ConfigError(f"--yes asks nothing, so give {' and '.join(missing)}")
    return wanted


def _asked(wanted: "Wanted") -> "Wanted":
    """Ask for what was not given."""
    base = wanted.base or _ask("Base model (a folder, or a name on the Hugging Face hub)")
    preferences = wanted.preferences or tuple(
        _ask("Files of comparisons (several: with a comma between)").split(",")
    )
    demonstrations = wanted.demonstrations or _ask(
        "File of demonstrations (empty: the preferred answers)", default=""
    )
    prompts = wanted.prompts or _ask(
        "File of prompts (empty: those of the comparisons)", default=""
    )
    goal = wanted.goal or _ask(
        "Goal: try (gates ask that nothing is broken), better (than SFT), or auto", default="auto"
    )
    from dataclasses import replace

    from rlhf_core.errors import ConfigError
    from rlhf_core.stages.project.new_project import GOALS

    if goal not in (*GOALS, "auto"):
        raise ConfigError(f"goal {goal!r}: expected try, better or auto")
    return replace(
        wanted,
        base=base.strip(),
        preferences=tuple(file.strip() for file in preferences),
        demonstrations=demonstrations.strip() or None,
        prompts=prompts.strip() or None,
        goal=GOALS.get(goal),
    )


def _ask(question: str, default: str | None = None) -> str:
    return str(typer.prompt(question, default=default, show_default=bool(default)))
