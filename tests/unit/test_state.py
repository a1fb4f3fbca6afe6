"""State is passed: no module and no class of the package is where two parts leave it for each other."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import assignment_workers

PACKAGE = Path(assignment_workers.__file__).parent
MIGRATIONS = PACKAGE / "schema" / "migrations"
FINITE = {"int", "bool", "Table"}
"""The types of arguments of which a process has few, however long it runs."""
FEW = {
    "assignment.crm.fact_views.are_needed": "the dialers of a process: one, unless a test makes more",
    "policy.calling._calendar": "the calendars of holidays that there are",
}
"""Functions that cache without a bound for another reason."""


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.is_relative_to(MIGRATIONS):
            yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def test_no_function_sets_a_variable_of_its_module() -> None:
    found = [
        f"{path}: {name}"
        for path, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
        for name in node.names
    ]
    assert found == []


def test_no_attribute_of_a_class_is_set_when_the_program_runs() -> None:
    """Neither by the name of a class of ours, nor by `cls` or `type(self)`."""
    trees = list(_trees())
    classes = {
        node.name for _, tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    }
    found = [
        f"{path}:{target.lineno}: {ast.unparse(target)}"
        for path, tree in trees
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for target in _set_in(function)
        if ast.unparse(target.value).split("(")[0] in classes | {"cls", "type"}
    ]
    assert found == []


def test_a_task_object_has_nothing_of_a_message() -> None:
    """There is one per process and task; a run of it carries what belongs to its message."""
    (handled,) = (
        node
        for path, tree in _trees()
        if path == "tasks/task_handler.py"
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "HandledTask"
    )
    functions = [each for each in handled.body if isinstance(each, ast.FunctionDef)]
    assert functions
    assert [ast.unparse(each) for one in functions for each in _set_in(one)] == []


def _set_in(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.Attribute]:
    for node in ast.walk(function):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (each for each in parts if isinstance(each, ast.Attribute))


def _caches() -> Iterator[tuple[str, Any]]:
    for module in pkgutil.walk_packages([str(PACKAGE)], f"{assignment_workers.__name__}."):
        if ".migrations" in module.name or module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if hasattr(value, "cache_parameters") and value.__module__ == module.name:
                yield f"{module.name}.{name}".removeprefix("assignment_workers."), value


def test_every_cache_is_bounded_or_its_arguments_are_few() -> None:
    found = dict(_caches())
    assert len(found) > 20
    endless = {
        name
        for name, made in found.items()
        if made.cache_parameters()["maxsize"] is None
        and {each.annotation for each in inspect.signature(made).parameters.values()} - FINITE
    }
    assert endless == set(FEW)
