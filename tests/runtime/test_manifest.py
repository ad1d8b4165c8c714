from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from engine_workload import ROOT

from connectors.base import Staged
from connectors.errors import RecoveryError
from pipelines.runtime.manifest import Manifest, OperatorState, SplitFile, StateFolder, read_manifests
from pipelines.runtime.messages import Alignment, SnapshotFile, SplitState

BASE = Manifest(
    name="p",
    options={"detect.key_length": 2000},
    attempt=3,
    epoch=0,
    finished=False,
    sources={"clips": {"a": SplitState({"frame": 7}, False, 7), "b": SplitState(None, False, 12), "c": SplitState()}},
    ended={"clips": (SplitFile("splits/clips/000000.jsonl", 2, "ab"),)},
    operators={
        "detect": (
            OperatorState((SnapshotFile("snapshots/detect/000000-3-0.safetensors", 9, "ab", False),), {"clips": ["a"]}),
            OperatorState((), {}),
        )
    },
    sinks={"rows": ((Staged("_staging/3/0/1", "part-0", 5, 99, "cd"),), ())},
    rows={"clips": 19, "rows": 5},
)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    folder.open()
    yield folder
    folder.close()


def test_a_manifest_reads_back_as_it_was_written(folder: StateFolder) -> None:
    folder.write(BASE)
    read = folder.newest()
    assert read is not None
    assert replace(read, committed_at="") == BASE
    assert read.committed_at


def test_rows_that_wait_in_an_aligning_operator_are_kept_with_their_epoch(folder: StateFolder) -> None:
    held = folder.root / "snapshots" / "detect" / "000001-3-0.arrows"
    held.parent.mkdir(parents=True)
    file = SnapshotFile("snapshots/detect/000001-3-0.arrows", 4, "ef", False)
    alignment = Alignment(5_000_000, [[5_000_000, "clips", ["a"]]], file)
    for epoch in range(4):
        held.write_text("rows")
        waits = alignment if epoch < 2 else Alignment(None, [])
        folder.write(replace(BASE, epoch=epoch, operators={"detect": (OperatorState((), {}, waits),)}))
        folder.clean()
        assert held.exists() == (epoch < 3)  # two epochs are kept
        read = folder.newest()
        assert read is not None
        assert read.operators["detect"][0].alignment == waits


def test_the_newest_of_several_wins_and_two_are_kept(folder: StateFolder) -> None:
    for epoch in range(5):
        folder.write(replace(BASE, epoch=epoch))
        folder.clean()
    assert [manifest.epoch for manifest in read_manifests(folder.root)] == [4, 3]


@pytest.mark.parametrize("damage", ["", '{"sha256":"00","manifest":{', "null", "[]", '{"manifest": 5}'])
def test_a_torn_manifest_is_skipped_with_a_warning(folder: StateFolder, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder.write(BASE)
    folder.write(replace(BASE, epoch=1))
    (folder.root / "epochs" / "000001.json").write_text(damage)
    with caplog.at_level(logging.WARNING):
        newest = folder.newest()
    assert newest is not None
    assert newest.epoch == 0
    assert "000001.json skipped" in caplog.text


def test_a_manifest_whose_content_was_changed_is_skipped(folder: StateFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder.write(BASE)
    path = folder.root / "epochs" / "000000.json"
    path.write_text(path.read_text().replace('"frame": 7', '"frame": 8'))
    with caplog.at_level(logging.WARNING):
        assert folder.newest() is None
    assert "checksum differs" in caplog.text


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (99, "has format 99, this version reads 3: resume with the version of streambank that wrote it, or start in a new"),
        (1, "this version reads 3: operators keep other state and options have other names since then; resume with the"),
    ],
)
def test_a_manifest_of_another_format_is_an_error_that_says_so(number: int, says: str, folder: StateFolder) -> None:
    (folder.root / "epochs" / "000007.json").write_text(json.dumps({"sha256": "", "manifest": {"format": number}}))
    with pytest.raises(RecoveryError, match=says):
        folder.newest()


def test_attempts_only_go_up_even_if_nothing_was_committed(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        folder = StateFolder(tmp_path)
        folder.open()
        seen.append(folder.next_attempt(None))
        folder.close()
    assert seen == [1, 2, 3]


def test_a_second_run_is_kept_out_and_told_which_process_holds_the_folder(folder: StateFolder) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.runtime.manifest import StateFolder;"
        "StateFolder(Path(sys.argv[1])).open()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder.root)], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode != 0
    assert f"is in use by another run (process {os.getpid()})" in done.stderr


def test_clean_keeps_exactly_the_snapshots_that_kept_manifests_name(folder: StateFolder) -> None:
    snapshots = folder.root / "snapshots" / "detect"
    snapshots.mkdir(parents=True)
    for epoch in range(4):
        name = f"snapshots/detect/{epoch}.safetensors"
        (folder.root / name).write_bytes(b"x")
        state = OperatorState((SnapshotFile(name, 1, "", False),), {})
        folder.write(replace(BASE, epoch=epoch, operators={"detect": (state,)}))
    (snapshots / ".9.safetensors.tmp").write_bytes(b"torn")
    folder.clean()
    assert sorted(path.name for path in snapshots.iterdir()) == ["2.safetensors", "3.safetensors"]
