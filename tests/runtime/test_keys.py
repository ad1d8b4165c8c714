from __future__ import annotations

import subprocess
import sys
from zlib import crc32

import pyarrow as pa
import pytest
from engine_workload import ROOT, value_batch

from pipelines.runtime.keys import shard_of, split_by_shard


def test_the_shard_of_a_stream_is_the_documented_function() -> None:
    for name in ("cam1", "k042", "Ünïcode", ""):
        for shards in (1, 3, 7, 128):
            assert shard_of(name, shards) == (crc32(name.encode()) % 128) * shards // 128


def test_the_shard_of_a_stream_is_the_same_in_every_process() -> None:
    code = "from pipelines.runtime.keys import shard_of; print([shard_of(f'k{i}', 5) for i in range(40)])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.strip() == str([shard_of(f"k{i}", 5) for i in range(40)])


@pytest.mark.parametrize("shards", [1, 2, 5, 128])
def test_splitting_keeps_every_row_on_its_shard_and_in_order(shards: int) -> None:
    batch = value_batch([f"k{i * i % 31}" for i in range(500)])
    parts = dict(split_by_shard(batch, shards))
    for shard, rows in parts.items():
        assert {shard_of(name, shards) for name in rows.column("stream_id").to_pylist()} == {shard}
        sequence = rows.column("sequence").to_pylist()
        assert sequence == sorted(sequence)
    together = pa.Table.from_batches(list(parts.values())).sort_by("sequence")
    assert together == pa.Table.from_batches([batch])


def test_a_batch_of_one_stream_is_not_copied() -> None:
    batch = value_batch(["only"] * 10)
    ((_, part),) = split_by_shard(batch, 4)
    assert part is batch


def test_128_streams_spread_over_all_of_8_shards() -> None:
    assert {shard_of(f"camera-{i}", 8) for i in range(128)} == set(range(8))
