"""Many small files: manifests do not grow with those that have been read, and no restart loses or doubles a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import durable, faults
from connectors.errors import RecoveryError
from connectors.sinks.read import read_committed
from pipelines import Pipeline
from pipelines.runtime import source_task
from pipelines.runtime.manifest import SplitFile, add_ended, read_ended, read_manifests
from pipelines.runtime.messages import SplitState

FILES, ROWS = 50, 4


class Crashed(Exception):
    """The run ends here, with whatever is on disk."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for file in range(FILES):
        lines = [json.dumps({"t": row, "v": file * ROWS + row}) + "\n" for row in range(ROWS)]
        (folder / f"f{file:03d}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(autouse=True)
def _few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_task, "MAX_OPEN_SPLITS", 4)
    monkeypatch.setattr(durable, "sync", lambda path: None)  # no machine dies here


def pipeline(root: Path, folder: Path) -> Pipeline:
    return Pipeline.from_dict(
        {
            "name": "p",
            "state": str(root / "state"),
            "epoch_s": 0.001,
            "sources": {
                "src": {"type": "jsonl", "path": str(folder), "event_time": "t", "event_time_unit": "s", "parallelism": 2}
            },
            "sinks": {"out": {"type": "parquet", "input": "src", "path": str(root / "out")}},
        }
    )


def rows(root: Path) -> list[tuple[Any, ...]]:
    table = read_committed(root / "out")
    return sorted(zip(*(table[name].to_pylist() for name in ("stream_id", "sequence", "v", "error")), strict=True))


EXPECTED = [(f"f{file:03d}", row, file * ROWS + row, None) for file in range(FILES) for row in range(ROWS)]


@pytest.mark.heavy
@pytest.mark.parametrize("point", ["before_manifest", "after_manifest"])
def test_runs_that_end_again_and_again_read_every_file_once(
    tmp_path: Path, folder: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    until = [2]

    def reach(name: str, epoch: int, task: str | None = None) -> None:
        if name == point and epoch >= until[0]:
            until[0] = epoch + 3
            raise Crashed

    monkeypatch.setattr(faults, "reach", reach)
    for attempt in range(100):
        try:
            pipeline(tmp_path, folder).run(resume=attempt > 0)
            break
        except Crashed:
            newest = read_manifests(tmp_path / "state")[0]
            known = newest.splits(tmp_path / "state", "src")
            assert sum(state.rows for state in known.values()) == newest.rows["src"]
            assert not any(state.done for state in newest.sources["src"].values())
    assert attempt > 2
    assert rows(tmp_path) == EXPECTED
    assert read_manifests(tmp_path / "state")[0].rows == {"src": len(EXPECTED), "out": len(EXPECTED)}
    pipeline(tmp_path, folder).run(resume=True)  # nothing is left to read
    assert rows(tmp_path) == EXPECTED


def test_a_manifest_does_not_hold_the_files_that_have_been_read(tmp_path: Path, folder: Path) -> None:
    pipeline(tmp_path, folder).run()
    state = tmp_path / "state"
    newest = read_manifests(state)[0]
    assert newest.finished
    assert newest.sources == {"src": {}}
    assert sorted(newest.splits(state, "src")) == [f"f{file:03d}" for file in range(FILES)]
    assert all(done.done and done.rows == ROWS for done in newest.splits(state, "src").values())
    assert max(path.stat().st_size for path in (state / "epochs").iterdir()) < 4000
    kept = {file.path for manifest in read_manifests(state) for file in manifest.ended["src"]}
    assert {str(path.relative_to(state)) for path in (state / "splits").glob("*/*")} == kept


def test_a_file_of_ended_splits_that_is_damaged_or_gone_is_named(tmp_path: Path, folder: Path) -> None:
    pipeline(tmp_path, folder).run()
    state = tmp_path / "state"
    path = state / read_manifests(state)[0].ended["src"][-1].path
    content = path.read_bytes()
    path.write_bytes(content.replace(b"4", b"5", 1))
    with pytest.raises(RecoveryError, match=rf"{path.name} is damaged: its checksum differs; put it back, or start over"):
        pipeline(tmp_path, folder).run(resume=True)
    path.unlink()
    with pytest.raises(RecoveryError, match=rf"{path.name} cannot be read: No such file or directory; put it back"):
        pipeline(tmp_path, folder).run(resume=True)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
@settings(max_examples=20, deadline=None)
def test_ended_splits_are_in_few_files_and_the_last_state_counts(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int]
) -> None:
    root = tmp_path_factory.mktemp("state")
    files: tuple[SplitFile, ...] = ()
    expected: dict[str, SplitState] = {}
    for epoch, count in enumerate(counts):
        ended = {f"s{(7 * epoch + n) % 200}": SplitState({"epoch": epoch}, True, n, None) for n in range(count)}
        expected |= ended
        before = read_ended(root, files)
        after = add_ended(root, "src", epoch, files, ended)
        assert read_ended(root, files) == before  # the manifest before still holds
        files = after
        assert read_ended(root, files) == expected
    assert len(files) <= max(1, sum(counts)).bit_length() + 1
