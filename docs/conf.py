"""Settings of the documentation site: ``make docs`` writes it to ``build/docs``."""

import logging
from importlib import metadata
from typing import Any

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
        "exclude_patterns": ["**/demo/*", "**/stages/*"],
        "automodule_options": {"members"},
        "module_first": True,
    }
]
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False


def setup(app: Any) -> None:
    """Show docstrings as they read in the code."""
    app.connect("autodoc-process-docstring", _as_in_the_code)


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
