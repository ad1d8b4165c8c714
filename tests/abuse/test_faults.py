"""What can happen to a run and its folders: either the rows are those of an undisturbed run, or an error says what is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from abuse import assert_words, plain_rows, run_limited
from engine_workload import PATIENCE_S, hurry, pipeline, run_here, run_process, start_process, write_lines

from connectors.errors import StreambankError

pytestmark = pytest.mark.heavy

ROWS = 4_000
Rows = list[tuple[Any, ...]]


class Bench:
    """Runs over the same lines, killed at two points, to be copied into every cell."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines = root / "lines"
        write_lines(self.lines, ROWS // 2, files=2)
        shutil.copytree(self.lines, root / "kept")
        for name, fault in {"before commit": "after_manifest:epoch=2", "after commit": "before_manifest:epoch=3"}.items():
            assert run_process(self.values(root / name), fault=fault) == -signal.SIGKILL
            assert 0 < len(rows(root / name)) < ROWS
        hurry(root)  # from here on
        assert run_process(self.values(root / "undisturbed")) == 0
        self.rows = rows(root / "undisturbed")
        assert len(self.rows) == ROWS

    def values(self, run: Path, **changes: Any) -> dict[str, Any]:
        """A pipeline that is slow until ``hurry(root)``: what a run began with must not change when it is resumed."""
        fixed = {"operators__mean__slow_s": 0.05, "operators__mean__slow_until": str(self.root / "hurry")}
        return pipeline(self.lines, run, **(fixed | changes))

    def restore(self) -> None:
        shutil.rmtree(self.lines)
        shutil.copytree(self.root / "kept", self.lines)


def rows(run: Path) -> Rows:
    """What Arrow finds in the folder of the sink."""
    return sorted((row["stream_id"], row["sequence"], row["n"], row["m"]) for row in plain_rows(run / "rows"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def lines_as_they_were(bench: Bench) -> Iterator[None]:
    yield
    bench.restore()


# What lies in the folders is damaged


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def manifest(number: int) -> Callable[[Path], Path]:
    return lambda run: sorted((run / "state" / "epochs").glob("*.json"))[number]


def snapshot(run: Path) -> Path:
    return max((run / "state" / "snapshots").glob("*/*.safetensors"), key=lambda path: path.stat().st_mtime_ns)


def staged(run: Path) -> Path:
    return next((run / "rows" / "_staging").rglob("*.staged"))


def published(run: Path) -> Path:
    return max((run / "rows").glob("part-*"))


SAME = "the rows of an undisturbed run"
DAMAGES = (delete, truncate, empty, flip)
PLACES: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "the newest manifest, its files not published": ("before commit", manifest(-1), SAME),
    "the newest manifest, its files published": ("after commit", manifest(-1), "which this run did not write"),
    "an older manifest": ("before commit", manifest(0), SAME),
    "the attempt counter": ("before commit", lambda run: run / "state" / "attempt", SAME),
    "the lock": ("before commit", lambda run: run / "state" / "lock", SAME),
    "the newest snapshot": ("before commit", snapshot, "snapshot"),
    "a staged file": ("before commit", staged, ".jsonl"),
    "the newest published file": ("after commit", published, "part-"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", PLACES)
def test_damage_is_named_or_the_rows_are_those_of_an_undisturbed_run(
    place: str, damage: Callable[[Path], None], bench: Bench, tmp_path: Path
) -> None:
    template, find, outcome = PLACES[place]
    run = tmp_path / "run"
    shutil.copytree(bench.root / template, run)
    target = find(run)
    damage(target)
    if outcome == SAME:
        run_here(bench.values(run), resume=True)
        assert rows(run) == bench.rows
        return
    before = {path: path.read_bytes() for path in (run / "rows").glob("part-*")}
    with pytest.raises(StreambankError) as error:
        run_here(bench.values(run), resume=True)
    assert_words(str(error.value), [outcome])
    assert {path: path.read_bytes() for path in (run / "rows").glob("part-*")} == before


def test_all_manifests_damaged_are_no_fresh_start(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(bench.root / "after commit", run)
    for path in (run / "state" / "epochs").glob("*.json"):
        flip(path)
    for resume in (True, False):
        with pytest.raises(StreambankError):
            run_here(bench.values(run), resume=resume)


def test_a_state_folder_that_was_moved_goes_on(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(bench.root / "before commit", run)
    (run / "state").rename(tmp_path / "moved")
    run_here(bench.values(run, state=str(tmp_path / "moved")), resume=True)
    assert rows(run) == bench.rows


# The input changes between two runs


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"k": "x", "v": 1.0, "t": 1}\n')


def replace_by_one_of_the_same_size(path: Path) -> None:
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def rename(path: Path) -> None:
    path.rename(path.with_name("other.jsonl"))


@pytest.mark.parametrize("change", [append, replace_by_one_of_the_same_size, rename, delete, truncate])
@pytest.mark.parametrize("file", ["part0.jsonl", "part1.jsonl"])
@pytest.mark.usefixtures("lines_as_they_were")
def test_an_input_that_has_changed_is_named(file: str, change: Callable[[Path], None], bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(bench.root / "before commit", run)
    before = rows(run)
    change(bench.lines / file)
    with pytest.raises(StreambankError) as error:
        run_here(bench.values(run), resume=True)
    assert_words(str(error.value), [file])
    assert set(before) <= set(rows(run)) <= set(bench.rows)


# The process


def begun(run: Path, process: Any) -> None:
    """Wait until the first rows are published."""
    deadline = time.monotonic() + PATIENCE_S
    while not list((run / "rows").glob("part-*")) and process.is_alive() and time.monotonic() < deadline:
        process.join(0.01)
    assert process.is_alive()


def slow(bench: Bench, run: Path) -> dict[str, Any]:
    return pipeline(bench.lines, run, operators__mean__slow_s=0.2, operators__mean__max_batch=64)


@pytest.mark.parametrize("pause_s", [0.5, pytest.param(60.0, marks=pytest.mark.slow)])
def test_a_process_that_was_stopped_and_continued_goes_on(pause_s: float, bench: Bench, tmp_path: Path) -> None:
    process = start_process(slow(bench, tmp_path))
    begun(tmp_path, process)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(pause_s)
    os.kill(process.pid, signal.SIGCONT)
    hurry(tmp_path)
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert rows(tmp_path) == bench.rows


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)])
def test_an_impatient_stop_can_be_resumed(numbers: tuple[int, ...], bench: Bench, tmp_path: Path) -> None:
    process = start_process(slow(bench, tmp_path))
    begun(tmp_path, process)
    for number in numbers:
        os.kill(process.pid, number)
    process.join(PATIENCE_S)
    assert not process.is_alive()
    assert set(rows(tmp_path)) < set(bench.rows)
    hurry(tmp_path)
    run_here(slow(bench, tmp_path), resume=True)
    assert rows(tmp_path) == bench.rows


def test_a_second_driver_is_kept_out_and_the_first_is_not_disturbed(bench: Bench, tmp_path: Path) -> None:
    process = start_process(slow(bench, tmp_path))
    begun(tmp_path, process)
    for resume in (True, False):
        with pytest.raises(StreambankError, match=f"in use by another run \\(process {process.pid}\\)"):
            run_here(slow(bench, tmp_path), resume=resume)
    hurry(tmp_path)
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert rows(tmp_path) == bench.rows


def test_shards_may_go_from_one_to_three_to_two(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(bench.root / "before commit", run)
    (bench.root / "hurry").unlink()
    three = bench.values(run, operators__mean__shards=3, sinks__rows__shards=3)
    try:
        assert run_process(three, resume=True, fault="after_manifest:epoch=4") == -signal.SIGKILL
    finally:
        hurry(bench.root)
    assert len(rows(run)) < ROWS
    run_here(bench.values(run, operators__mean__shards=2, sinks__rows__shards=2), resume=True)
    assert rows(run) == bench.rows


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
def test_a_clock_that_jumps_changes_no_row(
    jump_s: float, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(bench.root / "before commit", run)
    real, real_ns, calls = time.time, time.time_ns, iter(range(1 << 40))
    monkeypatch.setattr(time, "time", lambda: real() + jump_s * next(calls))
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(jump_s * 1e9) * (next(calls) % 1000))
    run_here(bench.values(run), resume=True)
    assert rows(run) == bench.rows


# The disk


@pytest.mark.parametrize("place", ["state", "rows"])
def test_a_place_that_cannot_be_written_is_named(place: str, bench: Bench, tmp_path: Path) -> None:
    change = {"state": "/proc/streambank"} if place == "state" else {"sinks__rows__path": "/proc/streambank"}
    with pytest.raises(StreambankError, match="/proc/streambank"):
        run_here(bench.values(tmp_path, **change))


def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(bench: Bench, tmp_path: Path) -> None:
    values = bench.values(tmp_path, epoch_s=60)
    run_limited(values, tmp_path / "error.txt", most_bytes=64 << 10)
    assert_words((tmp_path / "error.txt").read_text(), ["SinkError", "is full", "run again with --resume"])
    assert rows(tmp_path) == []
    run_here(values, resume=True)
    assert rows(tmp_path) == bench.rows


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("place", ["state", "rows"])
def test_a_small_disk_that_is_full_ends_the_run_and_on_a_larger_one_it_goes_on(
    place: str, small_disk: Path, bench: Bench, tmp_path: Path
) -> None:
    change = {"state": str(small_disk)} if place == "state" else {"sinks__rows__path": str(small_disk / "rows")}
    values = bench.values(tmp_path, epoch_s=60, **change)
    (small_disk / "ballast").write_bytes(b"\0" * ((1 << 17) - (1 << 14)))
    with pytest.raises(StreambankError, match=r"(No space left|full).*--resume"):
        run_here(values)
    assert plain_rows(tmp_path) == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    run_here(values, resume=True)
    found = sorted((row["stream_id"], row["sequence"], row["n"], row["m"]) for row in plain_rows(tmp_path))
    assert found == bench.rows


def test_no_room_for_a_manifest_ends_the_run_and_with_room_it_goes_on(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(bench.root / "before commit", run)
    before = rows(run)
    run_limited(bench.values(run), tmp_path / "error.txt", most_bytes=2, resume=True)
    assert_words((tmp_path / "error.txt").read_text(), ["Error", "--resume"])
    assert set(before) <= set(rows(run)) < set(bench.rows)
    run_here(bench.values(run), resume=True)
    assert rows(run) == bench.rows
