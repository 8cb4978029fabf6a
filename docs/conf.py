"""Settings of the documentation site: ``make docs`` writes it to ``build/docs``."""

import logging
from importlib import metadata
from pathlib import Path
from typing import Any

from pygments.lexers import JsonLexer, TextLexer

from rlhf_core.config import PipelineConfig
from rlhf_core.config.reference import all_settings

logging.getLogger("great_expectations").setLevel(logging.WARNING)

project = "RLHF pipeline"
author = "the RLHF pipeline's authors"
release = metadata.version("rlhf-pipeline")

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["images"]
toc_object_entries = False  # each page would hold the names of all functions: half an hour to build
html_theme = "furo"
html_title = project
html_show_copyright = False
html_theme_options = {"sidebar_hide_name": False}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

suppress_warnings = ["ref.python"]  # words of a docstring that several modules define
apidoc_modules = [
    {
        "path": "../rlhf_core",
        "destination": "api",
        "max_depth": 2,
        "exclude_patterns": ["**/demo/*"],
        "automodule_options": {"members"},
        "module_first": True,
    }
]
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False


def setup(app: Any) -> None:
    """Write the page of all settings, and show docstrings as they read in the code."""
    app.add_lexer("jsonl", JsonLexer)
    app.add_lexer("csv", TextLexer)
    app.connect("builder-inited", _write_settings)
    app.connect("autodoc-process-docstring", _as_in_the_code)


def _write_settings(app: Any) -> None:
    """Write ``settings.md``: a table for each section, made from the classes that read it."""
    text = [
        "# Every setting",
        "",
        "Made from the code. `rlhf config explain KEY` says the same in a terminal, and",
        "`rlhf config show CONFIG` what is in force and where it was written. `[]` stands for an",
        "item of a list, `*` for any name.",
    ]
    sections: dict[str, list[str]] = {}
    for setting in all_settings(PipelineConfig):
        heading = setting.key.rpartition(".")[0] or "top level"
        if setting.only_with:
            heading += f" ({setting.only_with})"
        default, description = (
            words.replace("``", "`").replace("|", r"\|")
            for words in (setting.default, setting.description)
        )
        row = f"| `{setting.key}` | `{default}` | {description} |"
        sections.setdefault(heading, []).append(row)
    for heading, rows in sections.items():
        text += ["", f"## {heading}", "", "| key | default | |", "|---|---|---|", *rows]
    (Path(app.srcdir) / "settings.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def _as_in_the_code(
    app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Keep the lines of an indented equation, and let |x| be a size and no substitution."""
    shown: list[str] = []
    equation = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and shown and not shown[-1]:
            if not equation:
                shown += ["::", ""]
            equation = True
        elif line and not indented:
            equation = False
        shown.append(line if equation or "``" in line else line.replace("|", r"\|"))
    lines[:] = shown
