from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.errors import RecoveryError
from operators.state import Rows, State
from pipelines.runtime.snapshots import SnapshotWriter, read_chain, read_snapshot, write_snapshot


def make_state(lengths: list[int], *, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    total, n = sum(lengths), len(lengths)
    return State(
        streams=[f"cam/{i} ü" for i in range(n)],
        dense={"step": torch.arange(n), "seed": torch.randint(-(2**62), 2**62, (n, 2), generator=generator)},
        rows={"keys": Rows.full(torch.tensor(lengths, dtype=torch.int64), torch.randn((total, 3), generator=generator).half())},
        shared={"pool": torch.randn((4, 2), generator=generator).bfloat16(), "scalar": torch.tensor(1.5)},
        meta={"model": "m", "nested": {"a": [1, None, 2.5]}},
    )


def equal(a: State, b: State) -> None:
    assert (a.streams, a.meta, a.incremental, a.closed) == (b.streams, b.meta, b.incremental, b.closed)
    assert a.dense.keys() == b.dense.keys()
    assert a.rows.keys() == b.rows.keys()
    assert a.shared.keys() == b.shared.keys()
    pairs = [(a.dense[k], b.dense[k]) for k in a.dense] + [(a.shared[k], b.shared[k]) for k in a.shared]
    for name in a.rows:
        pairs += [(getattr(a.rows[name], p), getattr(b.rows[name], p)) for p in ("length_N", "count_N", "index_R", "values_R")]
    for left, right in pairs:
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


@given(lengths=st.lists(st.integers(0, 5), max_size=6), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_state_reads_back_bit_for_bit(lengths: list[int], seed: int, tmp_path: Path) -> None:
    state = make_state(lengths, seed=seed)
    file = write_snapshot(state, tmp_path, "snapshots/o/0.safetensors")
    equal(read_snapshot(tmp_path, file), state)
    assert file.bytes == (tmp_path / file.path).stat().st_size


def test_an_empty_state_reads_back(tmp_path: Path) -> None:
    equal(read_snapshot(tmp_path, write_snapshot(State(), tmp_path, "s")), State())


def test_tensors_with_gaps_or_shared_memory_are_written(tmp_path: Path) -> None:
    whole = torch.arange(12).reshape(3, 4)
    state = State(streams=["a", "b", "c"], dense={"x": whole[:, ::2], "y": whole[:, :1], "z": whole})
    equal(read_snapshot(tmp_path, write_snapshot(state, tmp_path, "s")), state)


def test_single_streams_can_be_read_out(tmp_path: Path) -> None:
    state = make_state([3, 0, 5, 2])
    file = write_snapshot(state, tmp_path, "s")
    wanted = {state.streams[2], state.streams[3]}
    equal(read_snapshot(tmp_path, file, wanted.__contains__), state.select([False, False, True, True]))


def test_a_chain_is_the_full_snapshot_with_the_changes_applied(tmp_path: Path) -> None:
    full = make_state([2, 3])
    change = State(
        streams=[full.streams[1], "new"],
        dense={name: torch.cat([tensor[1:] + 1, tensor[:1]]) for name, tensor in full.dense.items()},
        rows={
            "keys": Rows(
                torch.tensor([4, 1]), torch.tensor([2, 1]), torch.tensor([0, 3, 0]), torch.arange(9).reshape(3, 3).half()
            )
        },
        shared=full.shared,
        meta=full.meta,
        incremental=True,
        closed=[full.streams[0]],
    )
    chain = [write_snapshot(full, tmp_path, "0"), write_snapshot(change, tmp_path, "1")]
    merged = read_chain(tmp_path, chain)
    equal(merged, full.apply(change))
    assert merged.streams == [full.streams[1], "new"]
    assert torch.equal(merged.rows["keys"].values_R[1:3], full.rows["keys"].values_R[3:5])


def test_a_chain_without_its_full_snapshot_is_refused(tmp_path: Path) -> None:
    file = write_snapshot(State(incremental=True), tmp_path, "s")
    with pytest.raises(RecoveryError, match="does not begin with a full snapshot"):
        read_chain(tmp_path, [file])


def test_a_snapshot_that_has_changed_on_disk_is_refused(tmp_path: Path) -> None:
    file = write_snapshot(make_state([4]), tmp_path, "s")
    content = bytearray((tmp_path / "s").read_bytes())
    content[-1] ^= 1
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(RecoveryError, match="SHA-256 differs"):
        read_snapshot(tmp_path, file)
    (tmp_path / "s").unlink()
    with pytest.raises(RecoveryError, match="cannot be read: No such file"):
        read_snapshot(tmp_path, file)


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.runtime import snapshots

    def full(*args: object, **kwargs: object) -> None:
        Path(args[1]).write_bytes(b"half")  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "save_file", full)
    with pytest.raises(RecoveryError, match=r"No space left on device.*The epoch is not committed; free space"):
        write_snapshot(make_state([1]), tmp_path, "s")
    assert list(tmp_path.iterdir()) == []


def test_the_writer_writes_in_its_own_thread_and_finishes_before_it_closes(tmp_path: Path) -> None:
    writer = SnapshotWriter(tmp_path)
    state = make_state([2])
    pending = writer.submit(state, "snapshots/o/0")
    writer.close()
    equal(read_snapshot(tmp_path, pending.result(0)), state)
