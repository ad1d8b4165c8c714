"""The folders' promises: which way dependencies point, and what an import must not drag in."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("connectors", "models", "operators", "pipelines")
BOTTOM = {
    f"connectors.{name}"
    for name in (
        "canvas",
        "charts",
        "device_frames",
        "durable",
        "errors",
        "extras",
        "notebook",
        "options",
        "records",
        "signals",
    )
}
BODIES = ("body", "orelse", "finalbody", "handlers", "cases")
FORBIDDEN = {
    "connectors": {"torch", "ray", "models", "operators", "pipelines"},
    "models": {"av", "ray", "kafka", "decord", "open3d", "pydantic", "operators", "pipelines"},
    "operators": {"av", "ray", "kafka", "decord", "open3d", "pydantic", "pipelines"},
    "pipelines": {"av", "kafka", "decord", "open3d"},
}


class File(NamedTuple):
    """What is looked at of a file; its syntax tree is dropped, since hundreds that are kept make every collection dear."""

    modules: set[str]
    """Those that it imports."""
    public: list[str]
    defined: set[str]
    lines: int


@functools.cache
def read(path: Path) -> File:
    text = path.read_text()
    tree = ast.parse(text)
    defined: set[str] = set()
    public: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            defined |= names
            if "__all__" in names and node.value is not None:
                public = ast.literal_eval(node.value)
    by_call = "need(" in text or "optional(" in text
    return File(imported_modules(ast.walk(tree) if by_call else statements(tree)), public, defined, len(text.splitlines()))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements within a node, but no expression: they are a tenth of a tree."""
    for child in (child for name in BODIES for child in getattr(node, name, ())):
        yield child
        yield from statements(child)


def imported_modules(nodes: Iterable[ast.AST]) -> set[str]:
    modules = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "connectors":  # a namespace: what counts is the module taken from it
                modules |= {f"connectors.{alias.name}" for alias in node.names}
            else:
                modules.add(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("need", "optional"):
            modules |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return modules


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(package)
        for module in read(path).modules
        if module.split(".")[0] in FORBIDDEN[package]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["models", "operators"])
def test_operators_and_models_use_only_the_bottom_of_connectors(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(package)
        for module in read(path).modules
        if module.split(".")[0] == "connectors" and module not in BOTTOM
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package: str) -> None:
    """``__all__`` lists only what is there; checked on the syntax tree so that nothing heavy is imported."""
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files(package)
        for name in read(path).public
        if name not in read(path).defined and "__getattr__" not in read(path).defined
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["connectors", "models", "operators", "pipelines", "operators.mamba", "connectors.base"])
@pytest.mark.heavy
def test_importing_a_package_is_light(module: str) -> None:
    code = f"import {module}, sys; from connectors.extras import EXTRAS; print([m for m in EXTRAS if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=240, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_longer_than_600_lines() -> None:
    long = [f"{path.relative_to(ROOT)}: {n}" for p in PACKAGES for path in files(p) if (n := read(path).lines) > 600]
    assert not long, "\n".join(long)


def test_no_two_files_of_tests_have_the_same_name() -> None:
    """They are imported by their names alone, as are the helpers beside them."""
    names = Counter(path.name for path in files("tests") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
