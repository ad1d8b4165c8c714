"""Benchmarks run rarely, so what they import is checked by reading: nothing is run, nothing need be installed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = ("benchmarks", "connectors", "models", "operators", "pipelines", "streambank")


def module(name: str) -> Path | None:
    """Return the file of one of our modules; None where there is none."""
    place = ROOT.joinpath(*name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.exists()), None)


def defined(path: Path) -> set[str]:
    """Return the names that a module has at its top level, those under ``if`` and ``try`` among them."""
    names, waiting = set[str](), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
            waiting += [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt | ast.ExceptHandler)]
    return names


def missing(path: Path) -> list[str]:
    """Return what a file imports from this project that is not there."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level or (node.module or "").split(".")[0] not in OWN:
            continue
        assert node.module is not None
        home = module(node.module)
        if home is None:
            found.append(node.module)
            continue
        names = defined(home)
        if "__getattr__" not in names:
            wanted = [alias.name for alias in node.names]
            found += [f"{node.module}.{n}" for n in wanted if n not in names and module(f"{node.module}.{n}") is None]
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_imports_what_is_there(path: Path) -> None:
    assert missing(path) == []


def test_an_import_of_what_has_moved_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("from operators.memprompttss.weights import SHIPPED, build_network\n")
    assert missing(tmp_path / "one.py") == ["operators.memprompttss.weights.SHIPPED"]
