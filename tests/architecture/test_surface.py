"""What others rely on by name: commands, settings, and the functions of the core.

Adding to it is one command, ``python -m tests.architecture.test_surface``. What goes, or takes
another form, fails here: say it in the changelog, and let an old setting's error name its
replacement.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from rlhf_core.config import PipelineConfig
from rlhf_core.config.reference import all_settings
from rlhf_flows.commands.cli import app

ROOT = Path(__file__).parents[2]
LISTED = Path(__file__).with_name("surface.txt")
PUBLIC_PACKAGES = ("functional", "trainers", "rollout")
"""Rooms whose public functions are used without an orchestrator; packages list their own."""


def commands(command, name: str) -> Iterator[str]:
    """Yield each command, and each of its options and arguments."""
    if hasattr(command, "commands"):  # a group; of which click it is one, typer decides
        for part, below in command.commands.items():
            yield from commands(below, f"{name} {part}")
        return
    yield f"command {name}"
    for parameter in command.params:
        spelled = "/".join([*parameter.opts, *parameter.secondary_opts])
        yield f"command {name} {'' if parameter.required else '[optional] '}{spelled}"


def settings() -> Iterator[str]:
    """Yield each setting with its default."""
    for setting in all_settings(PipelineConfig):
        kind = f" ({setting.only_with})" if setting.only_with else ""
        yield f"setting {setting.key} = {setting.default}{kind}"


def functions() -> Iterator[str]:
    """Yield the functions of the public packages with their parameters, and what packages list."""
    for package in PUBLIC_PACKAGES:
        for path in sorted((ROOT / "rlhf_core" / package).glob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    names = ", ".join(argument.arg for argument in given)
                    yield f"function {package}.{path.stem}.{node.name}({names})"
    for package in ("config", "models", "schema", "tokenization"):
        listed = __import__(f"rlhf_core.{package}", fromlist=["__all__"]).__all__
        yield from (f"name {package}.{name}" for name in listed)


def surface() -> list[str]:
    everything = [
        *commands(typer.main.get_command(app), "rlhf"),
        *settings(),
        *functions(),
    ]
    return sorted(set(everything))


def test_nothing_that_others_rely_on_went_or_changed():
    gone = set(LISTED.read_text(encoding="utf-8").splitlines()) - set(surface())
    assert sorted(gone) == []


def test_what_is_new_is_listed():
    new = set(surface()) - set(LISTED.read_text(encoding="utf-8").splitlines())
    assert sorted(new) == [], "python -m tests.architecture.test_surface lists it"


if __name__ == "__main__":
    LISTED.write_text("\n".join(surface()) + "\n", encoding="utf-8")
    sys.stdout.write(f"{LISTED}: {len(surface())} lines\n")
