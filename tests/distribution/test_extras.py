"""Packages of the extras: what is missing is named with the extra to install, by ``check`` and where it is first needed."""

from __future__ import annotations

import ast
import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from connectors.errors import ConfigError
from connectors.extras import EXTRAS, MissingExtra, _Lazy, missing, need, optional
from pipelines import Pipeline, registry
from pipelines.cli import cli

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a machine without any extra: importing one of their modules fails as if it were not installed."""
    for module in [*EXTRAS, *(name for name in list(sys.modules) if name.partition(".")[0] in EXTRAS)]:
        monkeypatch.delitem(sys.modules, module, raising=False)
    ours = [vars(module) for name, module in list(sys.modules.items()) if name.partition(".")[0] in registry.OWN_PACKAGES]
    for stand_in in {id(value): value for names in ours for value in names.values() if isinstance(value, _Lazy)}.values():
        monkeypatch.setattr(stand_in, "_module", None)  # tests before this one may have used what it stands for

    class Absent:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name in EXTRAS:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name in EXTRAS else real(name, package))


def names(requirements: list[str]) -> set[str]:
    return {requirement.split(">")[0].split("[")[0].strip() for requirement in requirements}


def test_each_module_belongs_to_the_extra_that_installs_its_package() -> None:
    extras = PROJECT["optional-dependencies"]
    for module, package in EXTRAS.items():
        wanted = "kafka-python[crc32c]" if module == "crc32c" else package.distribution
        assert any(requirement.startswith(wanted) for requirement in extras[package.extra]), module
        assert package.distribution.split("[")[0] not in names(PROJECT["dependencies"])


def test_all_dev_and_bench_bring_every_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    parts = set(extras["all"][0].removeprefix("streambank[").removesuffix("]").split(","))
    assert parts == {package.extra for package in EXTRAS.values()} == set(extras) - {"all", "dev", "bench"}
    assert "streambank[all]" in extras["dev"]
    assert "streambank[all]" in extras["bench"]


def test_every_requirement_has_a_pin() -> None:
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = names([*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)])
    assert {name.lower() for name in wanted} - {"streambank"} <= pinned


@pytest.mark.heavy
def test_no_module_of_the_packages_imports_an_extra_when_it_is_imported() -> None:
    """Read from the syntax trees; the runner on Ray is reached only behind ``need("ray", ...)``."""
    wrong = []
    for path in sorted(path for package in registry.OWN_PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path.relative_to(ROOT)} imports {module}" for module in modules if module.partition(".")[0] in EXTRAS]
    behind = ("pipelines/runners/", "connectors/kafka/feed.py")
    assert not [line for line in wrong if not line.startswith(behind)], "\n".join(wrong)


def test_what_is_missing_is_named_with_one_command(bare: None) -> None:
    assert missing(["cv2", "torchvision", "kafka"]) == (
        "opencv-python and torchvision and kafka-python are not installed; run: pip install 'streambank[kafka,vision]'"
    )
    with pytest.raises(MissingExtra, match=r"a scene needs open3d, which is not installed; .*'streambank\[rgbd\]'") as caught:
        need("open3d", "a scene")
    assert isinstance(caught.value, ImportError)
    assert not isinstance(caught.value, ValueError)  # else decoders would take it for a frame that is broken


def test_a_stand_in_imports_only_when_something_of_it_is_used(bare: None) -> None:
    stand_in = optional("cv2")
    with pytest.raises(MissingExtra, match=r"test_extras needs opencv-python.*\[vision\]"):
        stand_in.imread  # noqa: B018


def test_a_package_that_does_not_load_is_told_from_one_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open3d.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "open3d", raising=False)
    with pytest.raises(MissingExtra, match=r"installed but does not load: libGL\.so\.1"):
        need("open3d", "a scene")


def test_check_names_every_missing_extra_at_once(bare: None, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    pipeline = Pipeline.from_dict(
        {
            "name": "p",
            "state": str(tmp_path / "state"),
            "runner": "ray",
            "sources": {"clips": {"type": "video", "path": str(tmp_path / "*.mp4")}},
            "operators": {"ask": {"type": "rekv", "input": "clips"}},
            "sinks": {
                "topic": {
                    "type": "kafka",
                    "input": "ask",
                    "bootstrap_servers": "127.0.0.1:9",
                    "topic": "t",
                    "path": str(tmp_path / "staged"),
                    "transactional_id": "t",
                }
            },
        }
    )
    found = {finding.where: finding.message for finding in pipeline.check() if finding.level == "error"}
    assert found == {
        "runner": "ray[default] is not installed; run: pip install 'streambank[ray]'",
        "sources.clips.type": "'video' cannot run here: opencv-python is not installed; run: pip install 'streambank[vision]'",
        "operators.ask.type": "'rekv' cannot run here: opencv-python and transformers are not installed; "
        "run: pip install 'streambank[rekv,vision]'",
        "sinks.topic.type": "'kafka' cannot run here: kafka-python is not installed; run: pip install 'streambank[kafka]'",
    }


def test_check_names_what_an_option_of_a_source_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    (tmp_path / "clip.mp4").touch()
    values = {
        "name": "p",
        "state": str(tmp_path / "state"),
        "sources": {
            "clips": {"type": "video", "path": str(tmp_path / "*.mp4"), "decoder": "torchcodec"},
            "doors": {"type": "camera", "cameras": {"door": "http://127.0.0.1:9/"}, "decoder": "torchcodec"},
        },
        "sinks": {"rows": {"type": "jsonl", "inputs": ["clips", "doors"], "path": str(tmp_path / "rows")}},
    }
    found = {finding.where: finding.message for finding in Pipeline.from_dict(values).check() if finding.level == "error"}
    remedy = "cannot run here: torchcodec is not installed; run: pip install 'streambank[torchcodec]'"
    assert found == {"sources.clips": f"'video' {remedy}", "sources.doors": f"'camera' {remedy}"}


def test_a_run_on_ray_without_ray_ends_with_the_command_that_installs_it(bare: None, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"stream_id": "a", "v": 1}\n')
    pipeline = Pipeline.from_dict(
        {
            "name": "p",
            "state": str(tmp_path / "state"),
            "sources": {"rows": {"type": "jsonl", "path": str(tmp_path / "rows.jsonl")}},
            "sinks": {"out": {"type": "jsonl", "input": "rows", "path": str(tmp_path / "out")}},
        }
    )
    with pytest.raises(MissingExtra, match=r"runner: ray needs ray\[default\].*streambank\[ray\]"):
        pipeline.run(runner="ray")


@pytest.mark.parametrize("entry", registry.entries(), ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_describe_needs_no_extra_and_says_what_installs_the_type(entry: registry.Entry, bare: None) -> None:
    done = CliRunner().invoke(cli, ["describe", entry.name])
    assert done.exit_code == 0, done.output
    assert ("installed by: pip install 'streambank[" in done.output) == any(e.needs for e in registry.find(entry.name))


def test_a_module_of_the_users_own_that_imports_a_missing_package_gets_the_command(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_steps_with_cv2.py").write_text("import cv2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"No module named 'cv2'; opencv-python is not installed; run: .*\[vision\]"):
        registry.load("operator", "own_steps_with_cv2:Step")


def test_a_module_with_the_name_of_our_package_is_asked_to_take_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'operators' is a package of Streambank's own: give your module another name"):
        registry.load("operator", "operators.mine:Step")
