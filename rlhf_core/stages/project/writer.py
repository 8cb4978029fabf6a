"""The files of a new project, from the templates in ``project_files``."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from rlhf_core.storage.records import write_text

SETTINGS = "rlhf.yaml"
_FILES = Path(__file__).with_name("project_files")
_IGNORED = """/runs/
/mlruns/
/mlartifacts/
/mlflow.db*
/.mlflow.db.lock
/.rlhf/
/data/prepared*/
/data/.prepared.lock
*.tmp
"""


def write_project(directory: Path, values: dict[str, Any]) -> list[str]:
    """Write every file of a project whole, and return their names.

    Args:
        directory: of the project.
        values: of the templates' variables; ``template`` says whether a chat template is among
            the files.

    Raises:
        jinja2.UndefinedError: a template asks for a value that is not there.
    """
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    texts = {".gitignore": _IGNORED}
    if values["template"]:
        texts["templates/chat.jinja"] = (_FILES / "chat.jinja").read_text(encoding="utf-8")
    for name in ("dvc.yaml", "prefect.yaml", "README.md", SETTINGS):
        text = (_FILES / f"{name}.jinja").read_text(encoding="utf-8")
        texts[name] = environment.from_string(text).render(values)
    for name, text in texts.items():
        write_text(directory / name, text)
    return list(texts)
