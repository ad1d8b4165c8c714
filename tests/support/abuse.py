"""What the abuse matrix shares: small pipelines, folders compared before and after, and rows by plain pyarrow."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.json as pj
from click.testing import CliRunner, Result
from engine_workload import PATIENCE_S, run_here

from connectors.errors import StreambankError
from pipelines.cli import cli

_FORMATS = {".parquet": "parquet", ".arrow": "ipc"}


def copying(folder: Path, source: Mapping[str, Any], sink: Mapping[str, Any] | None = None, **root: Any) -> dict[str, Any]:
    """A pipeline that copies a source to ``folder/rows``, with its state in ``folder/state``."""
    return {
        "name": "copy",
        "state": str(folder / "state"),
        "sources": {"events": dict(source)},
        "sinks": {
            "rows": {**(sink or {"type": "parquet", "partition_by": []}), "path": str(folder / "rows"), "input": "events"}
        },
        **root,
    }


def lines(path: Path, **options: Any) -> dict[str, Any]:
    """A source of JSON lines whose stream is ``k`` and whose time is ``t`` in seconds."""
    return {"type": "jsonl", "path": str(path), "stream_id": "k", "event_time": "t", "event_time_unit": "s", **options}


def pipe(path: Path) -> None:
    """Make a named pipe."""
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    """Make a socket of the file system."""
    folder = Path.cwd()
    os.chdir(path.parent)  # the address of a socket holds a hundred letters only
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(folder)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def plain_rows(folder: Path) -> list[dict[str, Any]]:
    """All committed rows below ``folder``, read by Arrow alone: every file by itself, whatever folder it lies in."""
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.rglob("part-*")):
        if "_staging" in file.relative_to(folder).parts:
            continue
        rows += (pj.read_json(file) if file.suffix == ".jsonl" else _dataset(file)).to_pylist()
    return rows


def _dataset(file: Path) -> pa.Table:
    return ds.dataset(file, format=_FORMATS[file.suffix], partitioning=None).to_table()


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below ``folder``: path → type and mode, size (0 of folders)."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_mode, 0 if stat.S_ISDIR(status.st_mode) else status.st_size)
    return found


def command(*arguments: str | Path) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(cli, [os.fspath(argument) for argument in arguments])


def run_file(folder: Path, document: Mapping[str, Any], *arguments: str) -> Result:
    """Write a pipeline file into ``folder`` and run it by the command line."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pipeline.yaml"
    path.write_text(json.dumps(document))
    return command("run", path, *arguments)


def refused(result: Result, *words: str) -> None:
    """Assert that a command ended with an error of one clear text that has all of ``words``, and no stack trace."""
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert "error:" in result.output
    assert_words(result.output, words)


def assert_words(text: str, words: Sequence[str]) -> None:
    """Assert that ``text``, whose lines may have been folded, has all of ``words``."""
    joined = " ".join(text.split())
    for word in words:
        assert word in joined, joined


def run_limited(values: Mapping[str, Any], said: Path, *, most_bytes: int, resume: bool = False) -> None:
    """Run in a process whose files may hold ``most_bytes``, as on a full disk; its error is in ``said``."""
    process = multiprocessing.get_context("forkserver").Process(target=_limited, args=(values, said, most_bytes, resume))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 3


def _limited(values: Mapping[str, Any], said: Path, most_bytes: int, resume: bool) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, unlimited[1]))
    try:
        run_here(dict(values), resume=resume)
    except StreambankError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        said.write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(3) from None
