"""A key of the settings that nothing reads would promise what it does not do."""

import ast
from pathlib import Path

import pytest

from rlhf_core.config import PipelineConfig, Section
from tests.config.reads import Code, declared, sections

ROOT = Path(__file__).parents[2]
ALIASES = {
    "PolicyConfig": ("PpoConfig", "DpoConfig"),
    "RolloutsConfig": ("OwnRolloutsConfig", "VllmRolloutsConfig"),
    "RewardTerm": ("ModelTermConfig", "FunctionTermConfig", "EndpointTermConfig"),
    "SuiteConfig": ("RegressionSuiteConfig", "LmEvalSuiteConfig"),
    "LabelerConfig": ("SimulatedLabelerConfig", "AiLabelerConfig", "LabelStudioLabelerConfig"),
}
VALIDATORS = ("field_validator", "model_validator")


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """All of the product; of the settings themselves only the methods, not what validates."""
    folder = tmp_path_factory.mktemp("product")
    paths = []
    for room in ("rlhf_core", "flows"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.is_relative_to(ROOT / "rlhf_core" / "config"):
                copy = folder / path.name
                copy.write_text(ast.unparse(without_validators(path)), encoding="utf-8")
                path = copy
            paths.append(path)
    return Code(paths, sections(PipelineConfig), ALIASES)


def without_validators(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [
                item
                for item in node.body
                if not any(
                    name in ast.unparse(mark)
                    for mark in getattr(item, "decorator_list", [])
                    for name in VALIDATORS
                )
            ]
    return tree


BY_NAME = {
    (kind, stage)
    for kind in ("GatesConfig", "RequiredGates")
    for stage in ("sft", "reward", "policy", "judge")
} | {
    (kind, "kind")
    for kind in ("RewardModelJudgeConfig", "RegressionSuiteConfig", "LmEvalSuiteConfig")
}
"""``of_stage`` reads the key that its argument names; a discriminator tells these apart."""
OPTIONAL = {("PreparationConfig", "policy"), ("PreparationConfig", "gates")}
"""Preparation lets them be missing; what reads them is read in ``PipelineConfig``."""


def test_every_key_is_read(code):
    unread = declared(code.kinds) - code.reads - BY_NAME - OPTIONAL
    assert not unread, "nothing reads " + ", ".join(sorted(f"{a}.{b}" for a, b in unread))


class Inner(Section):
    path: str = "a"
    depth: int = 1


class Outer(Section):
    path: str = "b"
    inner: Inner = Inner()
    more: tuple[Inner, ...] = ()


READER = """
class Inner:
    path: str
    depth: int

class Outer:
    path: str
    inner: Inner
    more: tuple[Inner, ...]

class Keeper:
    def __init__(self, settings: Outer) -> None:
        self.settings = settings

    def look(self) -> Inner:
        return {here}

def other(path, inner, depth):
    return path.path, inner.path, depth.depth
"""


@pytest.mark.parametrize(
    ("here", "unread"),
    [
        ("self.settings.inner.path", {"Outer.path", "Outer.more", "Inner.depth"}),
        (
            "[part.depth for part in self.settings.more]",
            {"Outer.path", "Outer.inner", "Inner.path"},
        ),
        ("self.settings.path", {"Outer.inner", "Outer.more", "Inner.path", "Inner.depth"}),
        ("self.look().depth", {"Outer.path", "Outer.inner", "Outer.more", "Inner.path"}),
    ],
)
def test_a_key_of_the_same_name_elsewhere_does_not_count(here, unread, tmp_path):
    (tmp_path / "reader.py").write_text(READER.replace("{here}", here))
    code = Code([tmp_path / "reader.py"], sections(Outer))
    assert {f"{a}.{b}" for a, b in declared(code.kinds) - code.reads} == unread
