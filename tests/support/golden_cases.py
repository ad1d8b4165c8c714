"""Finds reference outputs ("golden" cases) on disk, for every method.

A case is a file in a folder named after its method; the names of its entries say what it holds, never its size,
seed or full name. ``$STREAMBANK_GOLDEN`` names the only folder to look in; else ``tests/golden`` and ``../shared/golden``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["assert_complete", "cases", "checks_of", "entries", "folders", "golden", "read_json", "read_npz", "sibling"]

_TESTS = Path(__file__).resolve().parent.parent
_DATA = (".npz", ".json")


def roots() -> list[Path]:
    """Return the folders that hold one folder per method."""
    named = os.environ.get("STREAMBANK_GOLDEN")
    return [Path(named)] if named else [_TESTS / "golden", _TESTS.parent.parent / "shared" / "golden"]


@functools.cache
def folders(method: str) -> tuple[Path, ...]:
    """Return the folders of a method. A folder with the same data as an earlier one is left out."""
    found: dict[str, Path] = {}
    for root in roots():
        if (root / method).is_dir():
            found.setdefault(_digest(root / method), root / method)
    return tuple(found.values())


@functools.cache
def entries(path: Path) -> frozenset[str]:
    """Return the names of the entries of a data file."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return frozenset(arrays.files)
    content = json.loads(path.read_text())
    return frozenset(content) if isinstance(content, dict) else frozenset()


def cases(method: str, suffix: str, needs: Sequence[str]) -> list[Path]:
    """Return the data files of a method that have an entry for each pattern of ``needs``."""
    return [path for folder in folders(method) for path in _files(folder) if _fits(path, suffix, needs)]


def golden(method: str, suffix: str, *needs: str) -> Callable[[Any], Any]:
    """Decorate a test that takes ``path``: it runs once for every case of this kind."""
    import pytest  # readers of cases are used where it is not installed

    found = cases(method, suffix, needs)
    parametrize = pytest.mark.parametrize("path", found, ids=[f"{p.parent.parent.name}/{p.stem}" for p in found])

    def decorate(test: Any) -> Any:
        test.golden_kind = (suffix, needs)
        return pytest.mark.golden(parametrize(test))

    return decorate


def checks_of(path: Path, modules: Sequence[ModuleType]) -> list[Callable[[Path], None]]:
    """Return the tests of these modules that :func:`golden` would run for a file, wherever the file lies."""
    tests = [test for module in modules for test in vars(module).values() if hasattr(test, "golden_kind")]
    return [test for test in tests if _fits(path, *test.golden_kind)]


def assert_complete(method: str, kinds: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Fail where a method has no folder, a folder has no case, or a file belongs to no kind (suffix, needs).

    The project's own vectors have a case of every kind; a folder that somebody names need not.
    """
    assert folders(method), f"no folder {method!r} in {roots()}"
    for folder in folders(method):
        unknown = [path.name for path in _files(folder) if not any(_fits(path, *kind) for kind in kinds)]
        assert not unknown, f"{folder}: no kind of case has the entries of {unknown}"
        assert _files(folder), f"{folder} holds no case"
    if "STREAMBANK_GOLDEN" not in os.environ:
        missing = [kind for kind in kinds if not cases(method, *kind)]
        assert not missing, f"no case of {method} has the entries {missing}"


def sibling(path: Path, prefix: str, other: str, suffix: str) -> Path:
    """Return the file that belongs to ``path``: ``<prefix><label>`` goes with ``<other><label><suffix>``, else the only one."""
    same_label = path.with_name(other + path.stem.removeprefix(prefix) + suffix)
    if path.stem.startswith(prefix) and same_label.exists():
        return same_label
    found = sorted(path.parent.glob(f"{other}*{suffix}"))
    if len(found) != 1:
        raise AssertionError(f"{path}: needs one {other}*{suffix} beside it, found {[p.name for p in found]}")
    return found[0]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a file."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text())


def _fits(path: Path, suffix: str, needs: Sequence[str]) -> bool:
    return path.suffix == suffix and all(any(re.fullmatch(need, name) for name in entries(path)) for need in needs)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in _DATA)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
