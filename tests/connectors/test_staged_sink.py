"""What all file sinks promise about epochs: nothing early, nothing twice, nothing lost, nothing outside of the folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.base import Staged
from connectors.errors import SinkError
from connectors.records import TIME_TYPE, output_schema
from connectors.sinks import staged as staged_module
from connectors.sinks.arrow import ArrowOptions, ArrowSink
from connectors.sinks.jsonl import JsonlOptions, JsonlSink
from connectors.sinks.parquet import ParquetOptions, ParquetSink
from connectors.sinks.read import committed_files, read_committed
from connectors.sinks.staged import STAGING, FileSink, encode_name

SCHEMA = output_schema("numbers", 1, [pa.field("value", pa.float64())])
DAY_US = 86_400_000_000
EPOCHS = 4
Make = Callable[[Path], FileSink]


def batch(start: int, count: int) -> pa.RecordBatch:
    rows = range(start, start + count)
    columns = [
        pa.array([f"s{n % 3}" for n in rows]),
        pa.array(rows, pa.int64()),
        pa.array([n * DAY_US // 40 for n in rows]).cast(TIME_TYPE),
        pa.array([n / 7 for n in rows]),
        pa.array(["ok" if n % 5 else "late" for n in rows]).dictionary_encode().cast(SCHEMA.field("status").type),
        pa.nulls(count, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def parquet(path: Path) -> FileSink:
    return ParquetSink(ParquetOptions(path=path, partition_by=["stream", "date"]))


def arrow(path: Path) -> FileSink:
    return ArrowSink(ArrowOptions(path=path))


def jsonl(path: Path) -> FileSink:
    return JsonlSink(JsonlOptions(path=path))


@pytest.fixture(params=[parquet, arrow, jsonl])
def make(request: pytest.FixtureRequest) -> Make:
    chosen: Make = request.param
    return chosen


class Crash(Exception):
    """The process dies here: no ``close`` is called."""


class Run:
    """A small engine: what survives a crash is ``manifest``, the newest epoch and its staged files."""

    def __init__(self, make: Make, path: Path) -> None:
        self.make, self.path = make, path
        self.manifest: tuple[int, list[Staged]] = (-1, [])
        self.attempt = 0

    def go(self, crash: tuple[str, int] | None = None) -> None:
        self.attempt += 1
        recovering = self.make(self.path)
        recovering.recover(*self.manifest)
        recovering.close()
        sink = self.make(self.path)
        sink.open({"node": SCHEMA}, attempt=self.attempt, shard=0)
        for epoch in range(self.manifest[0] + 1, EPOCHS):
            sink.write("node", batch(epoch * 20, 12))
            self._reach("before_prepare", epoch, crash)
            sink.write("node", batch(epoch * 20 + 12, 8))
            files = sink.prepare(epoch)
            self._reach("after_prepare", epoch, crash)
            self.manifest = (epoch, files)
            self._reach("after_manifest", epoch, crash)
            if crash == ("between_renames", epoch):
                sink.commit(epoch, files[: len(files) // 2])
                raise Crash
            sink.commit(epoch, files)
            self._reach("after_commit", epoch, crash)
        sink.close()

    @staticmethod
    def _reach(point: str, epoch: int, crash: tuple[str, int] | None) -> None:
        if crash == (point, epoch):
            raise Crash


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in committed_files(path)}


def leftovers(path: Path) -> list[str]:
    return [str(file) for file in path.rglob("*") if STAGING in file.parts or file.name.endswith(".staged")]


POINTS = ("before_prepare", "after_prepare", "after_manifest", "between_renames", "after_commit")


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_crash_at_any_step_leaves_the_files_of_an_undisturbed_run(make: Make, tmp_path: Path, point: str, epoch: int) -> None:
    Run(make, tmp_path / "calm").go()
    run = Run(make, tmp_path / "crashed")
    with pytest.raises(Crash):
        run.go((point, epoch))
    run.go()
    assert contents(tmp_path / "crashed") == contents(tmp_path / "calm")
    assert read_committed(tmp_path / "crashed", schema=SCHEMA).num_rows == EPOCHS * 20
    assert not leftovers(tmp_path / "crashed")


def test_crashes_one_after_another_are_survived_too(make: Make, tmp_path: Path) -> None:
    Run(make, tmp_path / "calm").go()
    run = Run(make, tmp_path / "crashed")
    for crash in [("after_prepare", 0), ("between_renames", 0), ("after_prepare", 1), ("after_manifest", 3)]:
        with pytest.raises(Crash):
            run.go(crash)
    run.go()
    assert contents(tmp_path / "crashed") == contents(tmp_path / "calm")
    assert not leftovers(tmp_path / "crashed")


def opened(make: Make, path: Path, *, attempt: int = 1, shard: int = 0) -> FileSink:
    sink = make(path)
    sink.open({"node": SCHEMA}, attempt=attempt, shard=shard)
    return sink


def test_rows_are_invisible_until_their_epoch_is_committed(make: Make, tmp_path: Path) -> None:
    sink = opened(make, tmp_path)
    sink.write("node", batch(0, 10))
    assert not committed_files(tmp_path)
    files = sink.prepare(0)
    assert not committed_files(tmp_path)
    assert sum(file.rows for file in files) == 10
    assert all(file.bytes == (tmp_path / file.staged).stat().st_size for file in files)
    sink.commit(0, files)
    assert [file.relative_to(tmp_path).as_posix() for file in committed_files(tmp_path)] == [file.final for file in files]


def test_committing_twice_changes_nothing(make: Make, tmp_path: Path) -> None:
    sink = opened(make, tmp_path)
    sink.write("node", batch(0, 10))
    files = sink.prepare(0)
    sink.commit(0, files)
    before = contents(tmp_path)
    sink.commit(0, files)
    assert contents(tmp_path) == before


def test_committing_again_makes_the_renames_of_a_process_that_died_durable(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = opened(make, tmp_path)
    sink.write("node", batch(0, 10))
    files = sink.prepare(0)
    for file in files:  # as a commit does that is killed before it syncs
        (tmp_path / file.final).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.staged).rename(tmp_path / file.final)
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    make(tmp_path).recover(0, files)
    assert {(tmp_path / file.final).parent.stat().st_ino for file in files} <= synced


def test_an_epoch_without_rows_writes_no_file(make: Make, tmp_path: Path) -> None:
    sink = opened(make, tmp_path)
    sink.write("node", batch(0, 0))
    assert sink.prepare(0) == []


def test_shards_write_side_by_side(make: Make, tmp_path: Path) -> None:
    make(tmp_path).recover(-1, [])
    sinks = [opened(make, tmp_path, shard=shard) for shard in range(3)]
    for shard, sink in enumerate(sinks):
        sink.write("node", batch(shard * 10, 10))
    for sink in sinks:
        sink.commit(0, sink.prepare(0))
    for sink in sinks:
        sink.close()
    assert sorted(read_committed(tmp_path, schema=SCHEMA)["sequence"].to_pylist()) == list(range(30))
    assert not leftovers(tmp_path)


def test_closing_drops_what_was_not_prepared_and_keeps_what_was(make: Make, tmp_path: Path) -> None:
    sink = opened(make, tmp_path)
    sink.write("node", batch(0, 10))
    files = sink.prepare(0)
    sink.write("node", batch(10, 10))
    sink.close()
    sink.close()
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.staged")) == sorted(f.staged for f in files)


def test_recovering_a_folder_that_does_not_exist_is_fine(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "none").recover(-1, [])
    assert not (tmp_path / "none").exists()


# -- other runs


def test_a_fresh_run_refuses_a_folder_with_rows_of_another(make: Make, tmp_path: Path) -> None:
    Run(make, tmp_path).go()
    before = contents(tmp_path)
    with pytest.raises(SinkError, match=r"this run starts over.*another folder"):
        make(tmp_path).recover(-1, [])
    assert contents(tmp_path) == before


def test_a_run_that_resumes_refuses_a_folder_with_later_epochs(make: Make, tmp_path: Path) -> None:
    Run(make, tmp_path).go()
    with pytest.raises(SinkError, match="newest epoch is 1"):
        make(tmp_path).recover(1, [])


def test_a_run_that_resumes_into_another_folder_says_that_its_files_are_missing(make: Make, tmp_path: Path) -> None:
    ours, theirs = Run(make, tmp_path / "ours"), Run(make, tmp_path / "theirs")
    ours.go()
    theirs.go()
    for file in committed_files(tmp_path / "theirs"):
        if "part-000003" in file.name:
            file.unlink()
    with pytest.raises(SinkError, match="neither staged nor published"):
        make(tmp_path / "theirs").recover(*ours.manifest)


def test_two_runs_that_start_in_one_folder_at_once_do_not_overwrite_each_other(make: Make, tmp_path: Path) -> None:
    first = opened(make, tmp_path, attempt=1)
    first.write("node", batch(0, 10))
    files = first.prepare(0)
    first.commit(0, files)
    before = contents(tmp_path)
    other = opened(make, tmp_path, attempt=2)
    other.write("node", batch(0, 10).set_column(3, SCHEMA.field(3), pa.array([-1.0] * 10)))
    with pytest.raises(SinkError, match="did not write"):
        other.commit(0, other.prepare(0))
    assert contents(tmp_path) == before


def test_an_older_attempt_is_fenced_off(make: Make, tmp_path: Path) -> None:
    old = opened(make, tmp_path, attempt=1)
    old.write("node", batch(0, 10))
    make(tmp_path).recover(-1, [])
    new = opened(make, tmp_path, attempt=2)
    with pytest.raises(SinkError, match=r"another run has taken over|cannot write"):
        old.prepare(0)
    with pytest.raises(SinkError, match="attempt 2 of this pipeline writes here"):
        opened(make, tmp_path, attempt=1)
    new.write("node", batch(0, 10))
    assert new.prepare(0)


def test_two_sinks_of_a_pipeline_cannot_share_a_folder(make: Make, tmp_path: Path) -> None:
    opened(make, tmp_path)
    with pytest.raises(SinkError, match="give every sink of the pipeline file its own 'path'"):
        opened(make, tmp_path)


def test_a_damaged_manifest_cannot_name_files_outside_of_the_folder(make: Make, tmp_path: Path) -> None:
    for name in ("../outside", "/etc/outside", "a/../../outside"):
        with pytest.raises(SinkError, match="outside of the sink's folder"):
            make(tmp_path).recover(0, [Staged("_staging/1/0/000001.staged", name, 1, 1, "0")])


def test_a_staged_file_that_was_changed_is_not_published(make: Make, tmp_path: Path) -> None:
    sink = opened(make, tmp_path)
    sink.write("node", batch(0, 10))
    files = sink.prepare(0)
    (tmp_path / files[0].staged).write_bytes(b"damaged")
    with pytest.raises(SinkError):
        make(tmp_path).recover(0, files)
    assert not committed_files(tmp_path)


# -- disks


def test_a_full_disk_is_an_error_that_says_so_and_shows_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sink = opened(make, tmp_path)
    monkeypatch.setattr(staged_module, "FileIO", FullDisk)
    sink.write("node", batch(0, 10))
    with pytest.raises(SinkError, match=r"full: No space left.*not committed.*--resume"):
        sink.prepare(0)
    sink.close()
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from connectors.errors import SinkError
from connectors.records import FRAME, TIME_TYPE, key_schema
from connectors.sinks.arrow import ArrowOptions, ArrowSink
from connectors.sinks.jsonl import JsonlOptions, JsonlSink
from connectors.sinks.parquet import ParquetOptions, ParquetSink

schema = key_schema("noise", 1, [pa.field("v", pa.float64())])
count = 100_000
keys = [pa.array(["s"] * count), pa.array(range(count), pa.int64()), pa.array(range(count)).cast(TIME_TYPE)]
batch = pa.RecordBatch.from_arrays([*keys, pa.array(np.random.default_rng(0).random(count))], schema=schema)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for kind, options in ((ArrowSink, ArrowOptions), (JsonlSink, JsonlOptions), (ParquetSink, ParquetOptions)):
    root = Path(sys.argv[1]) / kind.__name__
    sink = kind(options(path=root))
    sink.open({"node": schema}, attempt=0, shard=0)
    try:
        sink.write("node", batch)
        sink.prepare(0)
        print("no error")
    except SinkError as error:
        print("full" if "is full" in str(error) else error)
    sink.close()
    print(len([p for p in root.rglob("*") if p.is_file()]))
"""


@pytest.mark.heavy
def test_a_real_limit_on_file_size_is_met_with_the_same_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout.split("\n")[:-1] == ["full", "0"] * 3, done.stderr
    assert not done.stderr


def test_a_path_that_is_no_folder_is_an_error_that_says_so(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError, match="must be a folder"):
        opened(make, tmp_path / "file")
    with pytest.raises(SinkError, match="must be a folder"):
        opened(make, tmp_path / "file" / "below")


def test_a_file_system_that_is_read_only_is_an_error_that_says_so(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*args: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(SinkError, match="no permission to write: Read-only file system"):
        opened(make, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error_that_says_so(make: Make, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SinkError, match="no permission to write"):
        opened(make, tmp_path / "out")


# -- names

ODD = [
    "../x",
    "a/b",
    "..",
    ".",
    ".hidden",
    "_private",
    "",
    "ü/é",
    "日本",
    "a=b&c",
    "%2E",
    "x" * 500,
    "é" * 300,
    "\n\t\0",
    "part-0",
]


@given(st.text(max_size=300))
def test_a_stream_id_becomes_one_visible_folder_name(text: str) -> None:
    name = encode_name(text)
    assert "/" not in name
    assert not name.startswith((".", "_"))
    assert len(name.encode()) <= 200
    if len(name) < 183:
        assert unquote(name) == text


def test_different_stream_ids_get_different_folder_names() -> None:
    assert len({encode_name(text) for text in [*ODD, "x" * 501, "é" * 301]}) == len(ODD) + 2


def test_odd_stream_ids_stay_inside_the_folder_and_keep_their_rows(tmp_path: Path) -> None:
    count = len(ODD)
    rows = batch(0, count).set_column(0, SCHEMA.field(0), pa.array(ODD))
    root = tmp_path / "out"
    sink = opened(lambda path: ParquetSink(ParquetOptions(path=path, partition_by=["stream"])), root)
    sink.write("node", rows)
    files = sink.prepare(0)
    assert all(len(PurePosixPath(file.final).parts) == 2 for file in files)
    sink.commit(0, files)
    assert sorted(tmp_path.iterdir()) == [root]
    assert sorted(read_committed(root)["stream_id"].to_pylist()) == sorted(ODD)
