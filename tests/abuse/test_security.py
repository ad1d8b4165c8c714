"""Hostile input: files that want code to run, documents that want memory, and secrets that must stay where they are."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from abuse import command, copying, lines, plain_rows, refused, run_file, write_rows

SECRET = "s3cr3t-t0ken-4711"


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def safetensors(header: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def tensor(**changes: Any) -> bytes:
    return json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}).encode()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def objects(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.array([Touch(canary)], dtype=object))
    return buffer.getvalue()


def zip_with_pickle(canary: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Touch(canary)))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


CHECKPOINTS: dict[str, Callable[[Path], bytes]] = {
    "a bare pickle": lambda canary: pickle.dumps(Touch(canary)),
    "a pickle of protocol 0": lambda canary: pickle.dumps(Touch(canary), protocol=0),
    "a torch file with an object": lambda canary: saved({"state_dict": {"x": torch.ones(1)}, "y": Touch(canary)}),
    "a torch archive made by hand": zip_with_pickle,
    "npz with objects": objects,
    "a header of 8 EiB": lambda _: safetensors(b"{}", (1 << 63) - 1),
    "a header beyond the file": lambda _: safetensors(tensor(), 1 << 20),
    "a header that is no JSON": lambda _: safetensors(b"{" * 100),
    "a header nested deeply": lambda _: safetensors(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "offsets beyond the file": lambda _: safetensors(tensor(data_offsets=[0, 1 << 40], shape=[1 << 38]), body=b"\0" * 4),
    "offsets backwards": lambda _: safetensors(tensor(data_offsets=[4, 0]), body=b"\0" * 4),
    "a shape that overflows": lambda _: safetensors(tensor(shape=[1 << 62, 4, 4]), body=b"\0" * 4),
    "an unknown type": lambda _: safetensors(tensor(dtype="F99"), body=b"\0" * 4),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("method", ["mamba", "reloop2"])
def test_a_hostile_checkpoint_is_refused_and_nothing_of_it_runs(method: str, kind: str, tmp_path: Path) -> None:
    canary, weights = tmp_path / "canary", tmp_path / "weights.pth"
    weights.write_bytes(CHECKPOINTS[kind](canary))
    (tmp_path / "y.mp4").write_bytes(b"")
    document = copying(tmp_path, {"type": "video", "path": str(tmp_path / "y.mp4")})
    document["operators"] = {"op": {"type": method, "input": "events", "checkpoint": str(weights)}}
    document["sinks"]["rows"]["input"] = "op"
    refused(run_file(tmp_path, document), "weights.pth")
    assert not canary.exists()


def bomb(levels: int) -> str:
    more = (f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, levels))
    return "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(more)


YAML: dict[str, tuple[str, str]] = {
    "aliases of aliases": (bomb(9), "more than 100000 values"),
    "an anchor in itself": ("a: &a [*a]", "inside its own anchor"),
    "deep lists": ("a: " + "[" * 600 + "]" * 600, "nested too deeply"),
    "deep mappings": ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
    "a number of 5,000 digits": ("a: " + "9" * 5000, "has 5000 digits"),
    "a file of 2 MB": ("a: " + "x" * (2 << 20), "larger than 1048576 bytes"),
    "a call on a list": ("a: !!python/object/apply:os.system [touch canary]", "not allowed"),
    "a call on a mapping": ("a: !!python/object/new:os.system {args: [touch canary]}", "not allowed"),
    "a module": ("a: !!python/module:os x", "not allowed"),
    "a tag of one's own": ("a: !int 3", "not allowed"),
    "a tag that ends like a known one": ("a: !evil:int 3", "not allowed"),
    "a set": ("a: !!set {a, b}", "not allowed"),
    "a number that is none": ("a: !!int abc", "'abc' is no int"),
    "a float that is none": ("a: !!float abc", "'abc' is no float"),
    "a truth that is none": ("a: !!bool abc", "'abc' is no bool"),
    "a null that is none": ("a: !!null abc", "'abc' is no null"),
    "a control character": ("a: \0", "not valid YAML"),
    "several documents": ("a: 1\n---\na: 2", "not valid YAML"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", YAML)
def test_a_hostile_pipeline_file_is_one_clear_error(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, word = YAML[kind]
    Path("p.yaml").write_text(text)
    refused(command("check", "p.yaml"), "p.yaml", word)
    assert not Path("canary").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["deep lists", "a number of 5,000 digits", "a call on a list", "a number that is none"])
def test_a_hostile_value_of_the_command_line_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"k": "a", "t": 0}])
    text, word = YAML[kind]
    value = text.removeprefix("a: ")
    done = run_file(tmp_path, copying(tmp_path, lines(tmp_path / "in.jsonl")), "--set", f"seed={value}")
    refused(done, "--set seed=", word)


# Secrets


def test_a_secret_is_in_no_output_and_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABUSE_TOKEN", SECRET)
    write_rows(tmp_path / "in.jsonl", [{"k": "a", "v": n, "t": n} for n in range(100)])
    document = copying(tmp_path, lines(tmp_path / "in.jsonl"))
    document["sinks"]["live"] = {"type": "flight", "input": "events", "port": 0, "token": {"env": "ABUSE_TOKEN"}}
    done = run_file(tmp_path, document, "--log-level", "debug", "--debug")
    assert done.exit_code == 0, done.output
    path = tmp_path / "pipeline.yaml"
    said = [
        done,
        command("check", path, "--print"),
        command("inspect", tmp_path / "state"),
        command("inspect", tmp_path / "state", "--json"),
        command("describe", "flight"),
        command("run", path),  # refused: the state folder holds a run
        command("run", path, "--resume", "--set", "live.host=0.0.0.0"),  # refused: the token alone is not enough
        command("run", path, "--resume", "--set", f"live.token={SECRET}"),  # refused: never the value itself
    ]
    outputs = [result.output for result in said]
    assert [result.exit_code for result in said] == [0, 0, 0, 0, 0, 1, 2, 2], outputs
    assert not [text for text in outputs[:-1] if SECRET in text]
    assert "never the value itself" in outputs[-1]
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert len(plain_rows(tmp_path / "rows")) == 100


def test_what_a_run_writes_is_as_private_as_the_user_asks(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"k": "a", "v": n, "t": n} for n in range(10)])
    before = os.umask(0o077)
    try:
        assert run_file(tmp_path, copying(tmp_path, lines(tmp_path / "in.jsonl"))).exit_code == 0
    finally:
        os.umask(before)
    written = [path for place in ("state", "rows") for path in [tmp_path / place, *(tmp_path / place).rglob("*")]]
    assert len(written) > 5
    assert not [path for path in written if path.stat().st_mode & 0o7077]
    assert not [path for path in written if path.is_file() and path.stat().st_mode & 0o111]


# The report


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


MARKUP = {
    "a script": "<script>document.title='run'</script>",
    "an event": "<img src=x onerror=alert(1)>",
    "the end of a cell": "</td></tr></table><iframe src=//evil></iframe>",
    "the end of the page": "</body></html><svg onload=alert(1)>",
    "the end of an attribute": "\"'><a href=javascript:alert(1)>",
    "a comment": "<!--",
    "a style": "</style><style>*{display:none}</style>",
    "a place for format": "{title}{0}{body!r}",
    "an entity": "&lt;script&gt;",
}
TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h3", "p", "div", "table", "tr", "th", "td", "script"}
TAGS |= {"details", "summary"}
ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "class", "id", "type"}


@pytest.mark.parametrize("kind", MARKUP)
def test_markup_in_names_values_and_errors_is_text_in_the_report(kind: str, tmp_path: Path) -> None:
    text = MARKUP[kind]
    sink = tmp_path / text.replace("/", "\u2215")
    films = tmp_path / "films" / f"{text.replace('/', '-')}.mp4"
    films.parent.mkdir()
    films.touch()
    row = {"k": text, text: 1.5, "status": text, "error": text}
    write_rows(tmp_path / "in.jsonl", [{**row, "t": n} for n in range(3)] + [{"k": text, "t": text}])
    document = copying(tmp_path, lines(tmp_path / "in.jsonl"))
    document["sinks"]["rows"]["path"] = str(sink)
    done = run_file(tmp_path, document)
    assert done.exit_code == 0, done.output
    shown = command("view", sink, "--output", tmp_path / "report.html")
    assert shown.exit_code == 0, shown.output
    page = Page()
    document_text = (tmp_path / "report.html").read_text()
    scripts = re.findall("<script>(.*?)</script>", document_text, flags=re.S)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    assert f"script-src {allowed};" in document_text  # and no other runs
    assert all(text not in script for script in scripts)
    page.feed(document_text)
    page.close()
    assert page.tags <= TAGS
    assert page.attributes <= ATTRIBUTES
    assert page.texts.count(text) >= 2  # the stream, the column
    assert sink.name in page.texts
