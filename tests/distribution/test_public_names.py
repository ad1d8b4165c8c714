"""``import streambank as sb``: every public name, a light import, a clear error where a foreign package hides ours."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import streambank

ROOT = Path(__file__).resolve().parents[2]


def python(
    code: str, *, folder: Path, path: str | None = None, flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if path is None else path}
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("name", streambank.__all__)
def test_every_public_name_is_there_and_is_what_its_own_module_calls_so(name: str) -> None:
    value = getattr(streambank, name)
    if isinstance(value, type):
        assert value.__name__ == name
    assert name in dir(streambank)


def test_type_checkers_see_the_names_that_are_looked_up() -> None:
    tree = ast.parse((ROOT / "streambank.py").read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == streambank._HOME
    assert {*seen, "ShadowedPackage"} == set(streambank.__all__)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_names() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Pipelin'.*Pipeline"):
        streambank.Pipelin  # noqa: B018


def test_importing_it_loads_neither_torch_nor_arrow_nor_an_extra(tmp_path: Path) -> None:
    code = (
        "import streambank, sys\n"
        "heavy = ('torch', 'pyarrow', 'numpy', 'ray', 'cv2', 'kafka', 'transformers')\n"
        "print([m for m in heavy if m in sys.modules])\n"
        "streambank.Pipeline, streambank.Source, streambank.option\n"
        "print([m for m in heavy if m in sys.modules and m not in ('pyarrow', 'numpy')])"
    )
    done = python(code, folder=tmp_path)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"], done.stderr


def test_a_foreign_package_in_front_is_named_with_its_place_and_what_to_do(tmp_path: Path) -> None:
    for name in ("models", "operators"):
        folder = tmp_path / f"has_{name}"
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise AssertionError('must not be imported')")
        done = python("import streambank", folder=folder)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert f"ShadowedPackage: streambank: the module {name!r} is found at {folder / name}, which hides" in last
        assert f"python -P script.py), which leaves the script's folder out; or rename {name!r}; or put {ROOT} in front" in last
        assert python("import streambank", folder=folder, flags=("-P",)).returncode == 0


def test_a_foreign_package_that_was_imported_before_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "pipelines.py").write_text("mine = 1")
    code = f"import pipelines, sys; sys.path.remove(''); sys.path.insert(0, {str(ROOT)!r}); import streambank"
    done = python(code, folder=tmp_path)
    assert f"the module 'pipelines' is found at {tmp_path / 'pipelines.py'}" in done.stderr


@pytest.mark.heavy
def test_a_folder_of_files_with_the_name_of_a_package_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights.bin").touch()
    done = python("import streambank as sb, models; print(sb.State.__module__, models.__file__)", folder=tmp_path)
    assert done.stdout.split() == ["operators.state", str(ROOT / "models" / "__init__.py")], done.stderr


def test_the_command_line_says_so_in_a_message_without_a_stack_trace(tmp_path: Path) -> None:
    (tmp_path / "models.py").touch()
    command = tmp_path / "bin" / "streambank"
    command.parent.mkdir()
    command.write_text("import sys\nfrom streambank import main\nsys.exit(main())\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, command, "list"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: streambank: the module 'models' is found at")
    assert "Traceback" not in done.stderr
