"""What is no file where a file is expected: an error or a row that says so, within seconds, and never a wait without end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2  # noqa: F401 (loading it takes longer than a cell)
import pytest
import torch  # noqa: F401
from abuse import assert_words, command, copying, pipe, plain_rows, refused, run_file, unix_socket, write_rows

from connectors.sources.follow import Folder

SUFFIXES = {"jsonl": "jsonl", "csv": "csv", "parquet": "parquet", "arrow": "arrow", "video": "mp4", "images": "png"}
NO_FILE = "only files can be read again"


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a named pipe": (pipe, NO_FILE),
    "a socket": (unix_socket, NO_FILE),
    "a device without end": (endless, NO_FILE),
    "a folder": (folder, "it holds nothing"),
    "a link to nothing": (dangling, "no such file or folder"),
    "a link to itself": (loop, "no such file or folder"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", SUFFIXES)
def test_a_source_that_is_told_to_read_it_says_what_it_is(source: str, kind: str, tmp_path: Path) -> None:
    make, word = KINDS[kind]
    path = tmp_path / f"x.{SUFFIXES[source]}"
    make(path)
    refused(run_file(tmp_path, copying(tmp_path, {"type": source, "path": str(path)})), path.name, word)
    assert not (tmp_path / "rows").exists()


SLOW = pytest.mark.slow


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "kind", ["a named pipe", pytest.param("a socket", marks=SLOW), pytest.param("a device without end", marks=SLOW)]
)
@pytest.mark.parametrize("source", SUFFIXES)
def test_beside_files_it_is_left_alone_or_refused_and_never_opened(source: str, kind: str, tmp_path: Path) -> None:
    clips = tmp_path / "in"
    clips.mkdir()
    KINDS[kind][0](clips / f"x.{SUFFIXES[source]}")
    (clips / f"y.{SUFFIXES[source]}").write_bytes(b'{"v": 1}\n')
    done = run_file(tmp_path, copying(tmp_path, {"type": source, "path": str(clips)}))
    if done.exit_code:
        assert "Traceback" not in done.output
    else:
        assert {row["stream_id"] for row in plain_rows(tmp_path / "rows")} <= {"y", "in"}


@pytest.mark.timeout(60)
def test_a_pipe_that_appears_in_a_followed_folder_is_noted_and_files_are_read(tmp_path: Path) -> None:
    watched = Folder(str(tmp_path), lambda path: path.suffix == ".mp4", 0.0)
    pipe(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").touch()
    assert [path.name for path in watched.settled()] == ["b.mp4"]
    (why,) = watched.unread.values()
    assert NO_FILE in why


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_file_that_is_none_is_refused(kind: str, tmp_path: Path) -> None:
    KINDS[kind][0](tmp_path / "p.yaml")
    refused(command("run", tmp_path / "p.yaml"), "p.yaml")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"a folder"}))
@pytest.mark.parametrize("place", ["state", "rows"])
def test_a_place_to_write_that_is_no_folder_is_refused(place: str, kind: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"v": 1}])
    KINDS[kind][0](tmp_path / place)
    source = {"type": "jsonl", "path": str(tmp_path / "in.jsonl"), "event_time_unit": "rows"}
    refused(run_file(tmp_path, copying(tmp_path, source)), place)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_file_that_is_none_is_refused(kind: str, tmp_path: Path) -> None:
    KINDS[kind][0](tmp_path / "token")
    write_rows(tmp_path / "in.jsonl", [{"v": 1}])
    source = {"type": "jsonl", "path": str(tmp_path / "in.jsonl"), "event_time_unit": "rows"}
    document = copying(tmp_path, source, {"type": "flight", "token": {"file": str(tmp_path / "token")}})
    document["sinks"]["rows"].pop("path")
    refused(run_file(tmp_path, document), "token", "is empty" if kind == "a named pipe" else "cannot be read")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["mamba", "reloop2", "rekv"])
def test_a_checkpoint_that_is_no_file_is_refused(method: str, kind: str, tmp_path: Path) -> None:
    KINDS[kind][0](tmp_path / "weights.pth")
    (tmp_path / "y.mp4").write_bytes(b"")
    document = copying(tmp_path, {"type": "video", "path": str(tmp_path / "y.mp4")})
    document["operators"] = {"op": {"type": method, "input": "events", "checkpoint": str(tmp_path / "weights.pth")}}
    document["sinks"]["rows"]["input"] = "op"
    done = run_file(tmp_path, document)
    assert done.exit_code in (1, 2), done.output
    assert "Traceback" not in done.output
    assert_words(done.output, ["weights.pth"])
