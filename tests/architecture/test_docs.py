"""What documents show is so: links lead somewhere, code runs, settings load."""

import ast
import doctest
import json
import re
from pathlib import Path

import pytest
import yaml

from rlhf_core.config import load_config
from rlhf_core.dataprep.sources.look import look_at

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_FILE = re.compile(r"`([\w./-]+\.py)`")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
PYTHON_CODE = [page for page in PAGES if ">>> " in page.read_text(encoding="utf-8")]


def anchors(page):
    """Return the anchors of a page's headings as GitHub and the site write them."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_somewhere():
    broken = []
    for page in PAGES:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            path, _, anchor = link.partition("#")
            if re.match(r"\w+:", link) or path.startswith("api/"):  # the site makes the reference
                continue
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_a_file_of_code_that_a_document_names_is_there():
    folders = ("flows", "rlhf_core", "tests", "benchmarks", "docs")
    there = [path.as_posix() for name in folders for path in (ROOT / name).rglob("*.py")]
    missing = [
        f"{page.name}: {named}"
        for page in PAGES
        for named in CODE_FILE.findall(page.read_text(encoding="utf-8"))
        if not any(path.endswith(f"/{named}") for path in there)
    ]
    assert missing == []


@pytest.mark.parametrize("page", PYTHON_CODE, ids=lambda page: page.name)
def test_python_that_is_shown_gives_what_is_shown(page):
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert tried > 0
    assert failed == 0


def test_the_settings_shown_for_ones_own_data_are_those_that_the_file_asks_for(tmp_path):
    text = (ROOT / "docs/own-data.md").read_text(encoding="utf-8")
    row, settings = (re.search(rf"```{kind}\n(.+?)```", text, re.DOTALL)[1]
                     for kind in ("json", "yaml"))  # fmt: skip
    rows = [
        {
            **json.loads(row),
            "question": f"How do I get to room {number}?",
            "better": "ab"[number % 2],
        }
        for number in range(40)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.yaml").write_text(settings)
    found = look_at(tmp_path / "mine.jsonl")
    shown = yaml.safe_load(settings)["data"]["preferences"]
    assert found.settings | {"path": shown["path"]} == shown
    assert load_config(tmp_path / "mine.yaml").project == "mine"


WALKS = (ROOT / "docs/code-walks.md").read_text(encoding="utf-8").split("\n## ")[1:]


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.splitlines()[0])
def test_on_a_walk_each_function_is_called_by_one_named_before(walk):
    bodies, wrong, files, count = "", [], set(), 0
    for line in re.findall(r"^\| `(.+\.py)` \| (.+) \|$", walk, re.MULTILINE):
        tree = ast.parse((ROOT / line[0]).read_text(encoding="utf-8"))
        files.add(line[0])
        functions = {
            node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
        }
        for place, name in enumerate(re.findall(r"`(\w+)`", line[1])):
            count += 1
            begins = not bodies or (place == 0 and line[1].startswith("from disk"))
            if name not in functions:
                wrong.append(f"{line[0]} has no {name}")
                continue
            node = functions[name]
            known = {
                name,
                *re.findall(r"(\w+)\.register", " ".join(map(ast.unparse, node.decorator_list))),
            }
            if not begins and not known & set(re.findall(r"\w+", bodies)):
                wrong.append(f"nothing before {name} calls it")
            bodies += ast.unparse(node.body) + "\n"
    assert wrong == []
    assert f"\n{len(files)} files, {count} functions." in walk
