"""What keeps Ray from starting is told in one line, before long. Nothing here starts a Ray, except where it says so."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.errors import StreambankError
from pipelines.cli import cli
from pipelines.runners import cluster

FILE = """
name: t
runner: ray
state: state
sources:
  src: {type: jsonl, path: a.jsonl, event_time_unit: rows}
sinks:
  rows: {type: jsonl, input: src, path: out/rows}
"""


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.ray, "init", lambda **_: pytest.fail("Ray was asked to start"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "_ANSWER_S", 0.5)


def failing(error: Exception) -> Any:
    def init(**_: Any) -> None:
        raise error

    return init


def why() -> str:
    with pytest.raises(StreambankError) as raised:
        cluster._init(1)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers_is_named_with_the_remedy(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{scheme}127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"no Ray cluster answers at {address} (RAY_ADDRESS): Connection refused. Start one there" in why()


def test_a_host_that_has_no_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    monkeypatch.setattr(cluster, "_ANSWER_S", 3600.0)
    assert "no Ray cluster answers at no-such-host.invalid:6379" in why()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20))
@pytest.mark.heavy
def test_any_text_as_an_address_is_one_line(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", text)
        patch.setattr(cluster.ray, "init", failing(ConnectionError("nobody\n  there")))
        patch.setattr(cluster.socket, "create_connection", failing(OSError(113, "No route to host")))
        assert "unset" in why() or text == "local"


def test_the_address_of_a_dashboard_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert "this is the address of a dashboard, for `ray job submit`" in why()


def test_versions_that_differ_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        mismatch = (
            "Version mismatch: The cluster was started with:\n  Ray: 2.9.0\n  Python: 3.9.1\nThis process with:\n  Ray: 2.6"
        )
        monkeypatch.setattr(cluster.ray, "init", failing(RuntimeError(mismatch)))
        text = why()
        assert "cluster was started with: Ray: 2.9.0 Python: 3.9.1" in text
        assert "Run with the cluster's versions of Python and Ray" in text
        monkeypatch.setattr(cluster.ray, "init", failing(ConnectionError("Failed to connect")))
        assert f"cannot join the Ray cluster at {os.environ['RAY_ADDRESS']}" in why()


def test_ray_is_told_to_give_up_soon_and_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    name = "RAY_gcs_server_port_wait_time_s"
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(cluster.ray, "init", lambda **_: seen.append(os.environ.get(name)))
    cluster._init(1)
    monkeypatch.setenv(name, "7")
    cluster._init(1)
    assert (seen, os.environ[name]) == (["1", "7"], "7")
    monkeypatch.delenv(name)
    cluster._init(1)
    assert name not in os.environ


def test_a_temporary_folder_with_too_long_a_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 60)))
    assert "has too long a name for Ray's sockets below it" in why()
    assert "set RAY_TMPDIR to another folder" in why()


def test_a_full_disk_or_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 3 << 20))
    assert "Ray cannot start: the disk of '/tmp' is full (3 MiB are free, 50 are needed" in why()
    monkeypatch.setenv("RAY_TMPDIR", "/proc/self/status")
    assert "Ray cannot write into '/proc/self/status': " in why()


def test_anything_else_that_keeps_ray_from_starting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(cluster.ray, "init", failing(RuntimeError("the raylet\n  died")))
    assert why().startswith("Ray does not start on this machine: the raylet died. See the logs in /tmp/ray/session_latest/logs")


def test_the_command_line_ends_with_1_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(FILE)
    (tmp_path / "a.jsonl").write_text('{"v": 1}\n')
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    result = CliRunner().invoke(cli, ["run", "p.yaml", "--quiet"])
    assert result.exit_code == 1
    assert [line for line in result.output.splitlines() if line.startswith("error: no Ray cluster answers at 127.0.0.1:")]


@pytest.mark.slow
def test_a_port_where_something_else_answers_ends_within_90_seconds(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(FILE)
    (tmp_path / "a.jsonl").write_text('{"v": 1}\n')
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "streambank", "run", "p.yaml", "--quiet"],
            cwd=tmp_path,
            env={
                **os.environ,
                "RAY_ADDRESS": f"127.0.0.1:{listener.getsockname()[1]}",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert ended.returncode == 1
    assert "error: cannot join the Ray cluster at 127.0.0.1:" in ended.stderr
    assert time.monotonic() - began < 90
