"""A folder into which anybody may put requests: nothing but plain files of a bounded size is read, and none stops the run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from abuse import pipe, unix_socket

from connectors.sources.requests import RequestsOptions, RequestsReader, RequestsSource

GOOD = json.dumps({"stream_id": "cam", "question": "who?"}) + "\n"


def link_to_a_secret(path: Path) -> None:
    secret = path.parent.parent / "secret.jsonl"
    secret.write_text(json.dumps({"stream_id": "cam", "question": "s3cr3t"}) + "\n")
    path.symlink_to(secret)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk


def other_owner(path: Path) -> None:
    path.write_text(GOOD)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    path.chmod(0o400)


KINDS: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "a named pipe": (pipe, "is no plain file"),
    "a socket": (unix_socket, "is no plain file"),
    "a folder": (Path.mkdir, "is no plain file"),
    "a link to a file of ours": (link_to_a_secret, "is a symbolic link"),
    "a link to a device without end": (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "is a symbolic link"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "is a symbolic link"),
    "a file of 1 TiB": (huge, "is too large"),
    "bytes": (lambda path: path.write_bytes(bytes(range(11, 256)) + b"\n"), "not a JSON object"),
    "deep nesting": (lambda path: path.write_bytes(b'{"x":' + b"[" * 100_000 + b"\n"), ""),
    "a file of another user": (other_owner, None),
}


def read_all(reader: RequestsReader) -> list[dict[str, Any]]:
    """Read until the folder has been looked into twice without a row."""
    rows: list[dict[str, Any]] = []
    quiet = 0
    while quiet < 2:
        time.sleep(reader.next_due() or 0.0)
        batch = reader.read(100, 1 << 20)
        rows += [] if batch is None else batch.to_pylist()
        quiet = quiet + 1 if batch is None else 0
    return rows


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_lies_there_is_a_row_that_says_so_and_other_requests_are_read(kind: str, tmp_path: Path) -> None:
    make, word = KINDS[kind]
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "a.jsonl").write_text(GOOD)
    make(folder / "b.jsonl")
    (folder / "c.jsonl").write_text(GOOD)
    then = time.time() - 10
    os.utime(folder / "b.jsonl", (then, then), follow_symlinks=False)
    source = RequestsSource(RequestsOptions(path=folder, columns={"question": "string"}))
    reader = source.open("requests", None)
    try:
        first, odd, last = read_all(reader)
        for row in (first, last):
            assert (row["stream_id"], row["question"], row["error"]) == ("cam", "who?", None)
        if word is None:
            assert (odd["question"], odd["error"]) == ("who?", None)
        else:
            assert odd["question"] is None
            assert word in odd["error"]
            assert "s3cr3t" not in odd["error"]
        for _ in range(4):  # epochs pass, and what is behind is deleted
            source.discover()
    finally:
        reader.close()
    again = RequestsSource(RequestsOptions(path=folder, columns={"question": "string"})).open("requests", reader.position())
    try:
        assert read_all(again) == []
    finally:
        again.close()
    assert sorted(path.name for path in folder.iterdir()) == ["taken"]
