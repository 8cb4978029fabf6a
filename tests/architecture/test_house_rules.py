"""The rules of the house that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for room in ("flows", "rlhf_core", "tests") for path in (ROOT / room).rglob("*.py")
)
PRODUCT = [path for path in SOURCES if "tests" not in path.relative_to(ROOT).parts]
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "base_utils", "manager", "core"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_TRAINING_LOOP_LINES = 80

ENVIRONMENT = {
    "rlhf_core/adapters/settings.py",
    "rlhf_core/config/permissions.py",
    "flows/environment.py",
    "flows/servers.py",
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


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_fits_in_the_head(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_a_function_fits_on_a_screen(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            loop = node.name.startswith("fit_")
            most = MAX_TRAINING_LOOP_LINES if loop else MAX_FUNCTION_LINES
            assert body_lines(node) <= most, f"{node.name}: {body_lines(node)} lines"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_a_module_is_named_after_what_it_knows(path):
    assert path.stem not in VAGUE


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_nobody_prints_and_nobody_asserts(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_one_room_reads_the_environment(path):
    if name_of(path) in ENVIRONMENT:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            touched = f"{node.value.id}.{node.attr}"
            assert touched not in {"os.environ", "os.getenv", "os.putenv"}, f"line {node.lineno}"


def imported_by(statement):
    """Top-level packages in ``sys.modules`` after a fresh interpreter runs ``statement``."""
    code = (
        f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("room", ["config", "schema"])
def test_settings_and_records_load_without_the_heavy_libraries(room):
    heavy = {"torch", "transformers", "prefect", "mlflow", "numpy", "pandas"}
    assert not imported_by(f"import rlhf_core.{room}") & heavy


def test_the_front_door_loads_without_the_heavy_libraries():
    heavy = {"torch", "transformers", "prefect", "mlflow", "numpy", "pandas", "pydantic"}
    assert not imported_by("import flows.cli") & heavy


def test_flows_load_without_torch_and_mlflow():
    assert not imported_by("import flows.pipeline") & {"torch", "transformers", "mlflow"}


def test_data_rooms_load_without_torch():
    assert "torch" not in imported_by("import rlhf_core.dataprep, rlhf_core.demo.gold")


def test_rooms_import_only_downwards():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
