"""Which settings the code reads, found by following annotations through the syntax trees.

A small type inference: parameters, fields, properties and return values have the classes their
annotations name; attributes, calls, loops and assignments carry them on. Containers count as what
they hold. What cannot be followed counts as not read, so a mistake here shows as a failing test.
"""

import ast
import inspect
import re
from collections import defaultdict
from pathlib import Path

from rlhf_core.config import Section

Types = frozenset[str]
NOTHING: Types = frozenset()
SAME = {"model_copy", "values", "get", "copy"}
"""Methods that give what they were called on, or what it holds."""


def sections(root: type[Section]) -> dict[str, type[Section]]:
    """Every section that can be reached from ``root``, by name."""
    family = [base for base in root.__mro__ if issubclass(base, Section) and base is not Section]
    found = {kind.__name__: kind for kind in family}
    for field in root.model_fields.values():
        for inner in _inside(field.annotation):
            found |= sections(inner)
    return found


def _inside(annotation) -> list[type[Section]]:
    """Sections that an annotation names, in containers too."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _inside(part)]


def declared(kinds: dict[str, type[Section]]) -> set[tuple[str, str]]:
    """Every (section, key) where it is declared."""
    return {
        (name, key)
        for name, kind in kinds.items()
        for key in inspect.get_annotations(kind)
        if key in kind.model_fields
    }


class Code:
    """All classes and functions of some files, and the settings that are read in them."""

    def __init__(self, paths: list[Path], kinds: dict[str, type[Section]], aliases=None) -> None:
        self.kinds, self.aliases = kinds, aliases or {}
        self.attributes: dict[str, dict[str, Types]] = defaultdict(dict)
        self.bases: dict[str, list[str]] = defaultdict(list)
        self.returns: dict[str, Types] = defaultdict(frozenset)
        self.reads: set[tuple[str, str]] = set()
        trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
        self.classes = {
            node.name for t in trees for node in ast.walk(t) if isinstance(node, ast.ClassDef)
        }
        for tree in trees:
            self._declare(tree)
        for _ in range(2):  # attributes set in one class are read in another
            for tree in trees:
                self._function(tree.body, {}, None)

    def _declare(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                self.returns[node.name] |= self._named(node.returns)
            if not isinstance(node, ast.ClassDef):
                continue
            own = self.attributes[node.name]
            self.bases[node.name] += [ast.unparse(base).split("[")[0] for base in node.bases]
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    own[item.target.id] = self._named(item.annotation)
                if isinstance(item, ast.FunctionDef) and any(
                    "property" in ast.unparse(mark) for mark in item.decorator_list
                ):
                    own[item.name] = self._named(item.returns)

    def _named(self, annotation: ast.expr | None) -> Types:
        """Classes that an annotation names, in containers too."""
        if annotation is None:
            return NOTHING
        names = set(re.findall(r"\w+", ast.unparse(annotation)))  # strings may hold names too
        named = {inner for name in names for inner in self.aliases.get(name, (name,))}
        return frozenset(named & self.classes)

    def _attribute(self, kind: str, name: str) -> Types:
        if kind in self.kinds and name in self.kinds[kind].model_fields:
            for base in self.kinds[kind].__mro__:
                if name in inspect.get_annotations(base):
                    self.reads.add((base.__name__, name))
                    break
        if name in self.attributes[kind]:
            return self.attributes[kind][name]
        inherited = [self._attribute(base, name) for base in self.bases[kind]]
        return frozenset().union(*inherited)

    def _function(self, body: list[ast.stmt], names: dict[str, Types], owner: str | None) -> None:
        for statement in body:
            self._statement(statement, names, owner)

    def _statement(self, node: ast.stmt, names: dict[str, Types], owner: str | None) -> None:
        if isinstance(node, ast.ClassDef):
            self._function(node.body, dict(names), node.name)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._enter(node.args, node.body, names, owner)
            return
        self._expressions(node, names, owner)
        self._assignments(node, names, owner)
        for part in ("body", "orelse", "finalbody", "handlers"):
            for inner in getattr(node, part, []):
                self._statement(inner, names, owner)

    def _expressions(self, node: ast.stmt, names: dict[str, Types], owner: str | None) -> None:
        for field, value in ast.iter_fields(node):
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.expr) and field not in ("targets", "target"):
                    self._type(part, names, owner)
                elif isinstance(part, ast.withitem):
                    self._assign(part.optional_vars, part.context_expr, names, owner)

    def _assignments(self, node: ast.stmt, names: dict[str, Types], owner: str | None) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value, names, owner)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, node.value, names, owner)
        elif isinstance(node, ast.For):
            self._assign(node.target, node.iter, names, owner)

    def _enter(self, arguments, body, names, owner) -> None:
        inner = dict(names)
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            inner[argument.arg] = self._named(argument.annotation)
            if argument.arg == "self" and owner is not None:
                inner["self"] = frozenset([owner])
        if isinstance(body, ast.expr):
            self._type(body, inner, owner)
        else:
            self._function(body, inner, owner)

    def _assign(self, target, value, names, owner) -> None:
        kinds = self._type(value, names, owner)
        if isinstance(target, ast.Tuple):
            paired = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
            for index, part in enumerate(target.elts):
                self._assign(part, value.elts[index] if paired else value, names, owner)
        elif isinstance(target, ast.Name):
            names[target.id] = names.get(target.id, NOTHING) | kinds
        elif isinstance(target, ast.Attribute):
            for kind in self._type(target.value, names, owner) - self.kinds.keys():
                known = self.attributes[kind].get(target.attr, NOTHING)
                self.attributes[kind][target.attr] = known | kinds

    def _type(self, node: ast.expr, names: dict[str, Types], owner: str | None) -> Types:
        """Classes of an expression; reading them on the way."""
        if isinstance(node, ast.Name):
            return names.get(node.id, NOTHING)
        if isinstance(node, ast.Attribute):
            kinds = self._type(node.value, names, owner)
            return frozenset().union(*(self._attribute(kind, node.attr) for kind in kinds))
        if isinstance(node, ast.Lambda):
            self._enter(node.args, node.body, names, owner)
            return NOTHING
        if isinstance(node, ast.GeneratorExp | ast.ListComp | ast.SetComp | ast.DictComp):
            return self._comprehension(node, dict(names), owner)
        if isinstance(node, ast.NamedExpr):
            self._assign(node.target, node.value, names, owner)
        parts = [
            self._type(part, names, owner)
            for part in ast.iter_child_nodes(node)
            if isinstance(part, ast.expr)
        ]
        for keyword in getattr(node, "keywords", []):
            self._type(keyword.value, names, owner)
        if isinstance(node, ast.Call):
            return self._called(node, parts, names, owner)
        return frozenset().union(*parts)

    def _comprehension(self, node, names, owner) -> Types:
        for clause in node.generators:
            self._assign(clause.target, clause.iter, names, owner)
            for condition in clause.ifs:
                self._type(condition, names, owner)
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        return frozenset().union(*(self._type(part, names, owner) for part in results))

    def _called(self, node: ast.Call, parts: list[Types], names, owner) -> Types:
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in SAME:
            return self._type(function.value, names, owner)
        name = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
        if name in self.classes:
            return frozenset([name])
        if name in self.returns:
            return self.returns[name]
        return frozenset().union(*parts[1:])  # enumerate, zip, sorted: what they were given
