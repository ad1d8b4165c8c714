"""``inspect`` reads banks from the headers of snapshots, along the chain of full and incremental files."""

from __future__ import annotations

import fcntl
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from connectors.errors import RecoveryError
from operators.state import Rows, State
from pipelines.commands.inspect import inspect_state, state_text
from pipelines.runtime.manifest import Manifest, OperatorState, StateFolder, read_manifests
from pipelines.runtime.messages import Alignment, SnapshotFile, SplitState
from pipelines.runtime.snapshots import write_snapshot


def state(streams: list[str], *, incremental: bool = False, closed: list[str] | None = None) -> State:
    length_N = torch.full((len(streams),), 5)
    return State(
        streams=streams,
        dense={"step": torch.zeros(len(streams), 3)},
        rows={"bank": Rows.full(length_N, torch.zeros(5 * len(streams), 2, dtype=torch.float16))},
        incremental=incremental,
        closed=closed or [],
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A state folder: a full snapshot of streams a and b, then one in which a ended and c began."""
    chain = (
        write_snapshot(state(["a", "b"]), tmp_path, "snapshots/detect/0.safetensors"),
        write_snapshot(state(["b", "c"], incremental=True, closed=["a"]), tmp_path, "snapshots/detect/1.safetensors"),
    )
    manifest = Manifest(
        name="cameras",
        options={},
        attempt=2,
        epoch=1,
        finished=False,
        sources={"clips": {f"f{n}": SplitState({"frame": n}, done=n == 0) for n in range(3)}},
        operators={"detect": (OperatorState(chain),)},
        sinks={"rows": ()},
        rows={"clips": 12, "rows": 12},
    )
    folder = StateFolder(tmp_path)
    folder.open()
    folder.write(manifest)
    folder.close()
    return tmp_path


def test_streams_are_those_at_the_end_of_the_chain_and_bytes_those_of_the_full_snapshot(root: Path) -> None:
    [shard] = inspect_state(root)["operators"]["detect"]
    assert shard["streams"] == ["b", "c"]
    assert shard["tensors"]["step"] == 2 * 3 * 4
    assert shard["tensors"]["bank"] == 10 * 2 * 2 + 8 * (2 + 2 + 10)  # values, then lengths, counts and positions as int64
    assert shard["bytes"] == sum((root / path).stat().st_size for path in shard["files"])


def test_the_text_shows_positions_and_leaves_out_what_is_too_much(root: Path) -> None:
    text = state_text(inspect_state(root), most=2)
    assert text.startswith("pipeline    cameras, to be resumed\nepoch       1, committed 20")
    assert '              f0: done\n              f1: {"frame": 1}\n              and 1 more\n' in text
    assert "operator    detect[0]: 2 streams, " in text
    assert "              stream b\n              stream c\n" in text


def test_an_operator_that_aligns_shows_how_far_it_is(root: Path) -> None:
    manifest = read_manifests(root)[0]
    [shard] = manifest.operators["detect"]
    waiting = SnapshotFile("snapshots/detect/1.arrows", 2_500, "", False)
    folder = StateFolder(root)
    for epoch, alignment in enumerate([Alignment(1_600_000_000_500_000, (), waiting), Alignment(None)], start=2):
        folder.open()
        folder.write(replace(manifest, epoch=epoch, operators={"detect": (replace(shard, alignment=alignment),)}))
        folder.close()
        text = state_text(inspect_state(root))
        up_to, size = ("2020-09-13T12:26:40.500000+00:00", "2.5 kB") if epoch == 2 else ("nothing yet", "0 B")
        assert f"              handed over up to {up_to}; rows that wait: {size}\n" in text


def test_a_run_that_holds_the_lock_is_seen(root: Path) -> None:
    with (root / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert inspect_state(root)["running"] is True
    assert inspect_state(root)["running"] is False


def test_a_missing_snapshot_is_named(root: Path) -> None:
    (root / "snapshots/detect/1.safetensors").unlink()
    with pytest.raises(RecoveryError, match=r"snapshots/detect/1\.safetensors of the newest manifest cannot be read"):
        inspect_state(root)
