"""What comes after a run: a finished one reads what is new, one without an end is never finished, and both lose nothing."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.errors import RecoveryError, SourceError
from connectors.sinks.read import read_committed
from connectors.sources import follow
from pipelines import Pipeline
from pipelines.runners import Progress, local
from pipelines.runners.report import RunReport
from pipelines.runtime.manifest import read_manifests

pytestmark = pytest.mark.heavy

ROWS = 3


@pytest.fixture(autouse=True)
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_LOOK_S", 0.0)


def old(path: Path) -> None:
    then = time.time() - 60
    os.utime(path, (then, then))


def table(number: int) -> pa.Table:
    n = range(ROWS * number, ROWS * number + ROWS)
    return pa.table({"k": [f"k{i % 2}" for i in n], "t": list(n), "v": list(n)})


def jsonl_file(folder: Path, number: int) -> Path:
    path = folder / f"part{number}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table(number).to_pylist()))
    return path


def csv_file(folder: Path, number: int) -> Path:
    pyarrow.csv.write_csv(table(number), folder / f"part{number}.csv")
    return folder / f"part{number}.csv"


def parquet_file(folder: Path, number: int) -> Path:
    pq.write_table(table(number), folder / f"part{number}.parquet")
    return folder / f"part{number}.parquet"


def arrow_file(folder: Path, number: int) -> Path:
    path = folder / f"part{number}.arrow"
    with pa.ipc.new_file(path, table(number).schema) as writer:
        writer.write_table(table(number))
    return path


def video_file(folder: Path, number: int) -> Path:
    path = folder / f"part{number}.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (32, 16))
    for n in range(ROWS):
        writer.write(np.full((16, 32, 3), 50 * n, np.uint8))
    writer.release()
    return path


def image_files(folder: Path, number: int) -> Path:
    (folder / "cam").mkdir(exist_ok=True)
    for n in range(ROWS):
        path = folder / "cam" / f"i{ROWS * number + n}.png"
        cv2.imwrite(str(path), np.full((4, 4, 3), number, np.uint8))
        old(path)
    return path


Make = Callable[[Path, int], Path]
KEYS = {"event_time": "t", "event_time_unit": "s"}
KINDS: dict[str, tuple[Make, dict[str, Any]]] = {
    "jsonl": (jsonl_file, {"type": "jsonl", "stream_id": "k", **KEYS}),
    "jsonl, a stream per file": (jsonl_file, {"type": "jsonl", **KEYS}),
    "csv": (csv_file, {"type": "csv", "stream_id": "k", **KEYS}),
    "csv, a stream per file": (csv_file, {"type": "csv", **KEYS}),
    "parquet": (parquet_file, {"type": "parquet", "stream_id": "k", **KEYS}),
    "parquet, a stream per file": (parquet_file, {"type": "parquet", **KEYS}),
    "arrow": (arrow_file, {"type": "arrow", "stream_id": "k", **KEYS}),
    "video": (video_file, {"type": "video"}),
    "images": (image_files, {"type": "images"}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class Place:
    """An input folder and the pipeline that copies it."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self.folder = root / "in"
        self.folder.mkdir()
        self._make, self._source = KINDS[kind]

    def add(self, *numbers: int) -> None:
        for number in numbers:
            old(self._make(self.folder, number))

    def run(self, *, resume: bool = False, runner: str = "local", stop_idle: bool = False, **options: Any) -> RunReport:
        """Run; ``stop_idle``: until a turn brings nothing new."""
        values = {
            "name": "copy",
            "state": str(self.root / "state"),
            "sources": {"src": {**self._source, "path": str(self.folder), **options}},
            "sinks": {"rows": {"type": "jsonl", "input": "src", "path": str(self.root / "out")}},
        }
        stop = threading.Event()
        seen: list[int] = []

        def idle(progress: Progress) -> None:
            seen.append(progress.rows_read)
            if stop_idle and len(seen) > 3 and len(set(seen[-3:])) == 1:
                stop.set()

        return Pipeline.from_dict(values).run(runner=runner, resume=resume, on_progress=idle, stop=stop).report

    def rows(self) -> list[tuple[str, int]]:
        """Stream and sequence of all rows, in the order in which they were written."""
        table = read_committed(self.root / "out")
        return list(zip(table["stream_id"].to_pylist(), table["sequence"].to_pylist(), strict=True))


def expected(root: Path, kind: str, files: int) -> list[tuple[str, int]]:
    """The rows of one run over that many files."""
    (root / "expected").mkdir()
    place = Place(root / "expected", kind)
    place.add(*range(files))
    place.run()
    return place.rows()


@every_kind
def test_a_finished_run_reads_what_is_new_and_stops_again(kind: str, tmp_path: Path) -> None:
    place = Place(tmp_path, kind)
    place.add(0)
    assert place.run().status == "finished"
    assert place.run(resume=True).status == "already finished"
    place.add(1)
    place.add(2)
    again = place.run(resume=True)
    assert (again.status, again.rows_committed) == ("finished", {"src": 3 * ROWS, "rows": 3 * ROWS})
    assert place.run(resume=True).status == "already finished"
    assert place.rows() == expected(tmp_path, kind, 3)


@every_kind
def test_a_finished_run_goes_on_where_it_is_told_to_follow_and_is_then_never_finished(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_PROGRESS_S", 0.02)
    place = Place(tmp_path, kind)
    place.add(0)
    assert place.run().status == "finished"
    place.add(1)
    for more in ((), (2,), ()):  # idle, with a file that came while nobody was there, idle
        place.add(*more)
        assert place.run(resume=True, follow=True, stop_idle=True).status == "stopped"
        assert not read_manifests(tmp_path / "state")[0].finished
    assert sorted(place.rows()) == sorted(expected(tmp_path, kind, 3))


@every_kind
def test_a_followed_folder_that_is_stopped_while_idle_is_not_finished(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_PROGRESS_S", 0.02)
    place = Place(tmp_path, kind)
    place.add(0)
    assert place.run(follow=True, stop_idle=True).status == "stopped"
    assert not read_manifests(tmp_path / "state")[0].finished
    place.add(1)
    report = place.run(resume=True, follow=True, stop_idle=True)
    assert (report.status, report.rows_committed["rows"]) == ("stopped", 2 * ROWS)
    assert sorted(place.rows()) == sorted(expected(tmp_path, kind, 2))


def test_a_source_that_loses_its_end_cannot_be_given_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PROGRESS_S", 0.02)
    place = Place(tmp_path, "jsonl")
    place.add(0)
    place.run(follow=True, stop_idle=True)
    with pytest.raises(RecoveryError, match=r"src\.follow: True then, False now\. Put them back"):
        place.run(resume=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "images"])
def test_a_file_that_grows_after_it_was_read_is_named_instead_of_being_left_out(kind: str, tmp_path: Path) -> None:
    place = Place(tmp_path, kind)
    place.add(0, 1)
    place.run()
    grown = next(place.folder.iterdir())
    with grown.open("ab") as file:
        file.write(b'{"k": "k0", "t": 99, "v": 99}\n')
    with pytest.raises(SourceError, match=f"{grown.name}' has changed since it was read to its end .*its size went from"):
        place.run(resume=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "images"])
def test_files_that_have_been_read_may_be_gone(kind: str, tmp_path: Path) -> None:
    place = Place(tmp_path, kind)
    place.add(0, 1)
    place.run()
    for path in place.folder.iterdir():
        path.unlink()
    place.add(2)
    assert place.run(resume=True).rows_committed["rows"] == 3 * ROWS
    for path in place.folder.iterdir():
        path.unlink()
    assert sorted(place.rows()) == sorted(expected(tmp_path, kind, 3))


def test_images_that_sort_between_those_that_were_read_are_refused(tmp_path: Path) -> None:
    place = Place(tmp_path, "images")
    place.add(1)
    place.run()
    place.add(0)
    with pytest.raises(SourceError, match=r"3 files then, 6 now.*name new ones so that they sort behind them"):
        place.run(resume=True)


class _Killed(Exception):
    """Ends a run in the middle, as a kill would."""


@pytest.mark.parametrize("kind", ["jsonl", "jsonl, a stream per file"])
@given(plan=st.data())
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_that_come_between_runs_that_are_killed_stopped_and_resumed_are_read_once(
    kind: str, plan: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("reading")
    place = Place(root, kind)
    # Numbers in any order: for a run that has an end a file may sort before those that were read.
    numbers = plan.draw(st.permutations(range(4)), label="files")
    follows = plan.draw(st.booleans(), label="follows in the end")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "_LOOK_S", 0.0)
        patch.setattr(local, "_PROGRESS_S", 0.0)
        for turn, number in enumerate(numbers):
            place.add(number)
            ends_after = plan.draw(st.one_of(st.none(), st.integers(1, 12)), label="killed after so many turns of the loop")
            left = iter(range(ends_after or 1 << 30))

            def kill(progress: Progress, left: Any = left) -> None:
                if next(left, None) is None:
                    raise _Killed

            values = {
                "name": "copy",
                "state": str(root / "state"),
                "epoch_s": 0.001,
                "sources": {"src": {**KINDS[kind][1], "path": str(place.folder)}},
                "sinks": {"rows": {"type": "jsonl", "input": "src", "path": str(root / "out")}},
            }
            with contextlib.suppress(_Killed):
                Pipeline.from_dict(values).run(resume=turn > 0, on_progress=kill)
        if follows:
            place.run(resume=True, follow=True, stop_idle=True)
        else:
            place.run(resume=True)
    read = read_committed(root / "out")
    assert sorted(read["v"].to_pylist()) == list(range(4 * ROWS))
