"""The rules of the house that a machine can check."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for room in ("flows", "rlhf_core", "tests") for path in (ROOT / room).rglob("*.py")
)
PRODUCT = [path for path in SOURCES if "tests" not in path.relative_to(ROOT).parts]
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "base_utils", "manager", "core"}

LONG_FILE_LINES = 400
LONG_FILES_OF_ONE_CONCEPT: dict[str, str] = {}
"""Files longer than that, each with the answer to whether it holds two concepts."""
MAX_FUNCTION_LINES = 40
MAX_TRAINING_LOOP_LINES = 80

ENVIRONMENT = {
    "rlhf_core/adapters/settings.py",
    "rlhf_core/config/permissions.py",
    "flows/engine/environment.py",
    "flows/servers/own_pages.py",
    "flows/servers/servers.py",
}
"""Files that may touch the process environment: they prepare it for this process and its
children."""


def name_of(path):
    return str(path.relative_to(ROOT))


def body_lines(function):
    """Lines of a function without its signature and docstring."""
    first, *rest = function.body
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if documented and not rest:
        return 0
    return function.end_lineno - (rest[0] if documented else first).lineno + 1


@pytest.fixture(scope="module")
def trees():
    """Every source file, parsed once for all rules."""
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


@pytest.fixture
def product(trees):
    """Names and trees of the product's files."""
    return [(name_of(path), trees[name_of(path)]) for path in PRODUCT]


def test_a_long_file_was_asked_whether_it_holds_two_concepts():
    lines = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    long = {name for name, count in lines.items() if count > LONG_FILE_LINES}
    assert long == set(LONG_FILES_OF_ONE_CONCEPT)


def test_a_function_fits_on_a_screen(product):
    too_long = [
        f"{name}:{node.lineno} {node.name}: {body_lines(node)} lines"
        for name, tree in product
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node)
        > (MAX_TRAINING_LOOP_LINES if node.name.startswith("fit_") else MAX_FUNCTION_LINES)
    ]
    assert too_long == []


def test_a_module_is_named_after_what_it_knows():
    assert [name_of(path) for path in PRODUCT if path.stem in VAGUE] == []


def test_nobody_prints_and_nobody_asserts(product):
    found = [
        f"{name}:{node.lineno}"
        for name, tree in product
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        )
    ]
    assert found == []


def test_one_room_reads_the_environment(product):
    found = [
        f"{name}:{node.lineno}"
        for name, tree in product
        if name not in ENVIRONMENT
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and f"{node.value.id}.{node.attr}" in {"os.environ", "os.getenv", "os.putenv"}
    ]
    assert found == []


def imported_by(statement):
    """Modules that a fresh interpreter has after it ran ``statement``."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("room", ["config", "schema"])
def test_settings_and_records_load_without_the_heavy_libraries(room):
    heavy = {"torch", "transformers", "prefect", "mlflow", "numpy", "pandas"}
    assert not imported_by(f"import rlhf_core.{room}") & heavy


def test_the_command_line_loads_without_the_heavy_libraries():
    heavy = {"torch", "transformers", "prefect", "mlflow", "numpy", "pandas", "pydantic"}
    assert not imported_by("import rlhf_flows.commands.cli") & heavy


def test_flows_load_without_torch_and_mlflow():
    assert not imported_by("import rlhf_flows.pipeline") & {"torch", "transformers", "mlflow"}


def test_stages_find_their_dataset_without_what_splits_one():
    seconds = {"torch", "mlflow", "scipy.stats", "datasketch"}
    assert not imported_by("import rlhf_core.stages.versions.versions") & seconds


def test_data_rooms_load_without_torch():
    assert "torch" not in imported_by("import rlhf_core.dataprep, rlhf_core.demo.gold")


def test_rooms_import_only_downwards():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def imports_in(tree):
    """Line and package of every import; of ``from rlhf_core.config import ...`` ``rlhf_core``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.lineno, str(node.module).split(".")[0]
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)


def test_the_flows_are_imported_by_the_name_they_are_installed_under(trees):
    """A clone has a folder ``flows``; imported by that name, its modules would exist twice."""
    found = [
        f"{name}:{line}"
        for name, tree in trees.items()
        for line, package in imports_in(tree)
        if package == "flows"
    ]
    assert found == []


OWNERS = {
    "fcntl": set(),
    "filelock": {"rlhf_core/storage/locks.py"},
    "tenacity": {"rlhf_core/adapters/retries.py", "rlhf_core/adapters/http_client.py"},
}
"""Libraries that one place wraps for all; http_client shapes the waits that its servers ask for."""


def calls_in(node):
    """Names of what is called below a node: ``time.sleep``, ``os.replace``."""
    return {ast.unparse(child.func) for child in ast.walk(node) if isinstance(child, ast.Call)}


def test_one_lock_and_one_retry_policy(product):
    found = [
        f"{name}: {package}"
        for name, tree in product
        for _, package in imports_in(tree)
        if name not in OWNERS.get(package, {name})
    ]
    assert found == []


def test_nobody_repeats_by_hand_or_replaces_by_hand(product):
    """A loop that catches and sleeps is a retry; one that only sleeps watches something."""
    found = [
        f"{name}:{node.lineno}"
        for name, tree in product
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.For | ast.While)
            and "time.sleep" in calls_in(node)
            and any(isinstance(child, ast.Try) for child in ast.walk(node))
        )
        or (isinstance(node, ast.Call) and ast.unparse(node.func) in {"os.replace", "os.rename"})
    ]
    assert found == []


def test_what_the_product_imports_is_declared(product):
    """Else it is there by the grace of another package, in whichever version that one takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {canonicalize_name(Requirement(line).name) for group in groups for line in group}
    known = packages_distributions()
    own = sys.stdlib_module_names | {"rlhf_core", "rlhf_flows"}
    undeclared = {
        package: name
        for name, tree in product
        for _, package in imports_in(tree)
        if package not in own
        and not declared & {canonicalize_name(one) for one in known.get(package, ())}
    }
    assert undeclared == {}
