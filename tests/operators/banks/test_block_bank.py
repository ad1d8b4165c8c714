"""BlockBank against lists of tensors: whatever the tiers, budgets, threads and restarts, what is read is what was written."""

# B streams, F new blocks per stream, L layers, G groups, T tokens, D dim

import functools
import itertools
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from operators.banks import REFUSED, BlockBank, BlockSpec, FileReader, ReadBuffer
from operators.state import State

SPEC = BlockSpec(layers=3, groups=2, tokens=4, dim=6)
PAGE = 2 * 2 * 4 * 6 * 4
BLOCK = 3 * PAGE
MEAN = 3 * 2 * 6 * 4
ROOT = Path(__file__).resolve().parents[3]


@functools.cache
def content(key: int, number: int, spec: BlockSpec = SPEC) -> tuple[Tensor, Tensor]:
    """Keys and values [L, G, T, D] of a block, a function of whose it is and of its number."""
    generator = torch.Generator().manual_seed(key * 100_003 + number)
    shape = (spec.layers, spec.groups, spec.tokens, spec.dim)
    return tuple(torch.randn(shape, generator=generator).to(spec.dtype) for _ in range(2))


def blocks(key: int, numbers: range | list[int], spec: BlockSpec = SPEC) -> tuple[Tensor, Tensor]:
    """Several blocks, [F, L, G, T, D]."""
    shape = (0, spec.layers, spec.groups, spec.tokens, spec.dim)
    parts = [torch.empty(2, *shape, dtype=spec.dtype), *(torch.stack(content(key, n, spec))[:, None] for n in numbers)]
    return tuple(torch.cat(parts, dim=1))


def append(bank: BlockBank, key_of: dict[int, int], count: int) -> Tensor:
    """Append the next ``count`` blocks to each slot, layer by layer."""
    slots = list(key_of)
    starts = bank.count(slots).tolist()
    pairs = [blocks(key, range(start, start + count)) for key, start in zip(key_of.values(), starts, strict=True)]
    keys_BFLGTD, values_BFLGTD = (torch.stack([pair[i] for pair in pairs]) for i in range(2))
    for layer in range(SPEC.layers):
        numbers = bank.append_layer(layer, slots, keys_BFLGTD[:, :, layer], values_BFLGTD[:, :, layer])
    return numbers


def check(reader, key: int, numbers: list[int], spec: BlockSpec = SPEC) -> None:
    """Compare all layers of these blocks with what was written, bit for bit."""
    keys, values = blocks(key, numbers, spec)
    for layer in range(spec.layers):
        got_keys, got_values = reader.gather(layer, torch.tensor(numbers, dtype=torch.int64))
        assert torch.equal(got_keys.cpu(), keys[:, layer])
        assert torch.equal(got_values.cpu(), values[:, layer])


def check_all(bank: BlockBank, slot: int, key: int) -> None:
    """Compare everything that a slot holds, with its representatives."""
    with bank.reader(slot) as reader:
        numbers = list(range(reader.first, reader.below))
        if not numbers:
            return
        check(reader, key, numbers)
        keys, _ = blocks(key, numbers)
        for layer in range(SPEC.layers):
            assert torch.equal(reader.representatives(layer).cpu(), keys[:, layer].float().mean(2))


def snapshot(bank: BlockBank, slots: list[int], *, incremental: bool = False) -> State:
    state = State(streams=[f"s{slot}" for slot in slots], incremental=incremental)
    bank.export(slots, state, incremental=incremental)
    bank.mark_clean()
    return state


@pytest.fixture(params=["device", "host", "host_cached", "disk", "disk_cached", "disk_host"])
def tiers(request, tmp_path) -> dict[str, object]:
    """Budgets for 60 blocks whose home and caches differ."""
    return budgets(request.param, tmp_path / "blocks", 60)


def budgets(kind: str, folder: Path, room: int) -> dict[str, object]:
    means, disk = room * MEAN, {"disk_bytes": max(room, 8) * (BLOCK + MEAN) + 40 * 20_000, "disk_folder": folder}
    per_disk = 4 * means + 400 * MEAN  # the disk budget above holds more blocks than ``room``
    return {
        "device": {"device_bytes": room * (BLOCK + MEAN)},
        "host": {"device_bytes": means, "host_bytes": room * BLOCK},
        "host_cached": {"device_bytes": means + 5 * BLOCK, "host_bytes": room * BLOCK},
        "disk": {"device_bytes": per_disk + 400 * MEAN, **disk},
        "disk_cached": {"device_bytes": per_disk + 500 * MEAN + 4 * BLOCK, "host_bytes": 7 * BLOCK, **disk},
        "disk_host": {"device_bytes": 0, "host_bytes": per_disk + 400 * MEAN, "representatives": "host", **disk},
    }[kind]


def test_blocks_come_back_bit_for_bit_from_every_tier(tiers):
    bank = BlockBank(SPEC, slots=3, **tiers)
    bank.open([0, 2], [7, 9])
    for count in (1, 3, 5, 1, 7):
        append(bank, {0: 7, 2: 9}, count)
    append(bank, {2: 9}, 2)
    for _ in range(2):
        check_all(bank, 0, 7)
        check_all(bank, 2, 9)
        with bank.reader(2) as reader:
            check(reader, 9, [0, 3, 4, 11, 18])
            check(reader, 9, [])
    bank.close()


@pytest.mark.heavy
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_tiers_of_any_size_change_nothing(data, tmp_path_factory):
    host = data.draw(st.sampled_from([0, 30]))
    disk = data.draw(st.booleans())
    device = data.draw(st.integers(1, 9))
    folder = tmp_path_factory.mktemp("blocks")
    kwargs = {"device_bytes": 30 * (BLOCK + MEAN)}
    if disk:
        kwargs = {"device_bytes": device * BLOCK + 600 * MEAN, "host_bytes": data.draw(st.integers(0, 9)) * BLOCK}
        kwargs |= {"disk_bytes": 31 * 20_000, "disk_folder": folder}
    elif host:
        kwargs = {"device_bytes": device * BLOCK + 30 * MEAN, "host_bytes": host * BLOCK}
    bank = BlockBank(SPEC, slots=2, **kwargs)
    bank.open([0, 1], [1, 2])
    for _ in range(data.draw(st.integers(1, 6))):
        chosen = data.draw(st.sampled_from([{0: 1}, {1: 2}, {0: 1, 1: 2}]))
        append(bank, chosen, data.draw(st.integers(1, 2)))
        for slot, key in ((0, 1), (1, 2)):
            with bank.reader(slot) as reader:
                picked = data.draw(st.sets(st.integers(0, max(reader.below - 1, 0)), max_size=reader.below))
                for layer in range(SPEC.layers - 1):
                    reader.prefetch(layer, torch.tensor(sorted(picked), dtype=torch.int64))
                check(reader, key, sorted(picked))
    check_all(bank, 0, 1)
    check_all(bank, 1, 2)
    bank.close()


@given(data=st.data())
@settings(max_examples=20, deadline=None)
@pytest.mark.heavy
def test_any_course_of_events_leaves_the_blocks_that_are_held_as_written(data, tmp_path_factory):
    kind = data.draw(st.sampled_from(["device", "host_cached", "disk", "disk_cached"]))
    limit = data.draw(st.sampled_from([None, 4]))
    kwargs = budgets(kind, tmp_path_factory.mktemp("blocks"), 12)
    kwargs |= {"blocks_per_stream": limit, "on_full": data.draw(st.sampled_from(["refuse", "drop_oldest"]))}
    bank = BlockBank(SPEC, slots=2, **kwargs)
    keys, held, kept = {0: 1, 1: 2}, [], None
    bank.open([0, 1], [1, 2])
    for _ in range(data.draw(st.integers(4, 14))):
        slot = data.draw(st.integers(0, 1))
        match data.draw(st.sampled_from(["append", "append", "both", "reopen", "hold", "let_go", "snapshot", "restore"])):
            case "append":
                append(bank, {slot: keys[slot]}, data.draw(st.integers(1, 5)))
            case "both":
                append(bank, keys, data.draw(st.integers(1, 2)))
            case "reopen":
                bank.release([slot])
                keys[slot] += 2  # slot 0 has odd keys, slot 1 even ones
                bank.open([slot], [keys[slot]])
            case "hold":
                held.append((keys[slot], bank.reader(slot)))
            case "let_go" if held:
                held.pop(0)[1].close()
            case "snapshot":
                kept = (snapshot(bank, [0, 1]), dict(keys), bank.first([0, 1]).tolist(), bank.count([0, 1]).tolist())
            case "restore" if kept is not None:
                for _, reader in held:
                    reader.close()
                held.clear()
                bank.load([0, 1], kept[0])
                keys = dict(kept[1])
                assert (bank.first([0, 1]).tolist(), bank.count([0, 1]).tolist()) == kept[2:]
                kept = None  # snapshots that are older than three are not for restoring
        for key, reader in held:
            check(reader, key, list(range(reader.first, reader.below)))
        for one, key in keys.items():
            check_all(bank, one, key)
            assert limit is None or bank.count([one]) - bank.first([one]) <= limit
    for _, reader in held:
        reader.close()
    bank.release([0, 1])
    assert append_everything(bank)
    bank.close()


def append_everything(bank: BlockBank) -> bool:
    """Fill an empty bank to see that all of its room is there again."""
    bank.open([0], [1001])
    room = min(bank.plan.blocks, 12)
    written = torch.cat([append(bank, {0: 1001}, 1)[0] for _ in range(room)])
    limit = bank.count([0]) - bank.first([0])
    return int((written != REFUSED).sum()) == room or int(limit) == 4


def test_whole_blocks_are_appended_as_layer_by_layer(tiers):
    bank = BlockBank(SPEC, slots=2, **tiers)
    bank.open([0, 1], [4, 5])
    for number in range(4):
        pairs = [content(key, number) for key in (4, 5)]
        written = bank.append(torch.tensor([0, 1]), torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs]))
        assert written.tolist() == [number, number]
    check_all(bank, 0, 4)
    check_all(bank, 1, 5)
    bank.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_and_representatives_are_float32(dtype, tmp_path):
    spec = BlockSpec(layers=2, groups=1, tokens=3, dim=5, dtype=dtype)
    for kwargs in ({"device_bytes": 9000}, {"device_bytes": 9000, "disk_bytes": 10**6, "disk_folder": tmp_path}):
        kwargs["representatives"], kwargs["host_bytes"] = "host", 900_000
        bank = BlockBank(spec, slots=1, **kwargs)
        bank.open([0], [3])
        for number in range(3):
            keys, values = content(3, number, spec)
            bank.append([0], keys[None], values[None])
        with bank.reader(0) as reader:
            check(reader, 3, [0, 2], spec)
            keys, _ = blocks(3, range(3), spec)
            assert torch.equal(reader.representatives(1), keys[:, 1].float().mean(2))
        bank.close()


def test_float32_beyond_half_precision_is_clamped():
    spec = BlockSpec(layers=1, groups=1, tokens=1, dim=2, dtype=torch.float16)
    bank = BlockBank(spec, slots=1, device_bytes=1000)
    bank.open([0], [3])
    bank.append([0], torch.tensor([1e9, -1e9]).view(1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 2))
    with bank.reader(0) as reader:
        assert torch.isfinite(reader.gather(0, torch.tensor([0]))[0]).all()


def test_a_reader_sees_the_blocks_of_its_moment(tiers):
    bank = BlockBank(SPEC, slots=2, **tiers)
    bank.open([0, 1], [7, 8])
    append(bank, {0: 7, 1: 8}, 6)
    with bank.reader(0) as reader, bank.reader(0, below=2) as early:
        append(bank, {0: 7, 1: 8}, 9)
        assert (reader.first, reader.below, len(early)) == (0, 6, 2)
        check(reader, 7, [0, 1, 5])
        assert reader.representatives(0).shape == (6, 2, 6)
        with pytest.raises(ValueError, match="ascending numbers from 0 to 1"):
            early.gather(0, torch.tensor([2]))
    assert bank.count([0, 1]).tolist() == [15, 15]
    bank.close()


def test_a_block_counts_when_its_last_layer_is_there(tiers):
    bank = BlockBank(SPEC, slots=1, **tiers)
    bank.open([0], [7])
    append(bank, {0: 7}, 2)
    keys, values = blocks(99, range(2))
    for layer in range(SPEC.layers - 1):
        bank.append_layer(layer, [0], keys[None, :, layer], values[None, :, layer])
    assert bank.count([0]).tolist() == [2]
    with pytest.raises(ValueError, match="out of order"):
        bank.append_layer(1, [0], keys[None, :, 1], values[None, :, 1])
    append(bank, {0: 7}, 3)  # what was started is given up
    check_all(bank, 0, 7)
    bank.close()


def test_a_full_bank_refuses_blocks_and_says_which(tiers):
    bank = BlockBank(SPEC, slots=2, blocks_per_stream=5, **tiers)
    bank.open([0, 1], [7, 8])
    append(bank, {0: 7}, 3)
    numbers = append(bank, {0: 7, 1: 8}, 4)
    assert numbers.tolist() == [[3, 4, REFUSED, REFUSED], [0, 1, 2, 3]]
    assert append(bank, {0: 7}, 1).tolist() == [[REFUSED]]
    assert bank.refused == 3
    assert bank.count([0, 1]).tolist() == [5, 4]
    check_all(bank, 0, 7)
    check_all(bank, 1, 8)
    bank.close()


def test_dropping_the_oldest_keeps_the_numbers_of_the_others(tiers):
    bank = BlockBank(SPEC, slots=2, blocks_per_stream=5, on_full="drop_oldest", **tiers)
    bank.open([0, 1], [7, 8])
    for count in (3, 4, 1, 5):
        append(bank, {0: 7, 1: 8}, count)
        check_all(bank, 0, 7)
        check_all(bank, 1, 8)
    assert bank.first([0, 1]).tolist() == [8, 8]
    assert bank.count([0]).tolist() == [13]
    bank.close()


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_the_fullest_stream_makes_room_for_another_however_blocks_are_cut(cut):
    bank = BlockBank(SPEC, slots=2, device_bytes=10 * (BLOCK + MEAN), on_full="drop_oldest")
    bank.open([0, 1], [7, 8])
    append(bank, {0: 7}, 10)
    for _ in range(4 // cut):
        append(bank, {1: 8}, cut)
    assert bank.first([0, 1]).tolist() == [4, 0]
    for _ in range(8 // cut):
        append(bank, {1: 8}, cut)
    assert (bank.count([0, 1]) - bank.first([0, 1])).tolist() == [4, 6]
    assert bank.dropped == 12
    check_all(bank, 0, 7)
    check_all(bank, 1, 8)


def test_a_stream_at_its_limit_takes_nothing_from_others(tiers):
    bank = BlockBank(SPEC, slots=2, blocks_per_stream=8, on_full="drop_oldest", **tiers)
    bank.open([0, 1], [7, 8])
    append(bank, {0: 7}, 8)
    append(bank, {1: 8}, 5)
    append(bank, {1: 8}, 6)
    assert bank.first([0, 1]).tolist() == [0, 3]
    check_all(bank, 0, 7)
    check_all(bank, 1, 8)
    bank.close()


def test_a_full_disk_gives_up_the_oldest_file_of_the_fullest_stream(tmp_path):
    bank = BlockBank(SPEC, slots=2, device_bytes=200 * MEAN, disk_bytes=8 * 40_000, disk_folder=tmp_path, on_full="drop_oldest")
    per_file = bank.plan.segment_blocks
    bank.open([0, 1], [7, 8])
    append(bank, {0: 7}, bank.plan.blocks - per_file)
    append(bank, {1: 8}, per_file)
    assert bank.dropped == 0
    append(bank, {1: 8}, 1)
    assert bank.first([0, 1]).tolist() == [per_file, 0]
    for _ in range(30):
        assert REFUSED not in append(bank, {0: 7, 1: 8}, per_file // 2 + 1)
        assert bank.bytes()["disk"] <= 8 * 40_000
    check_all(bank, 0, 7)
    check_all(bank, 1, 8)
    bank.close()


def test_what_a_reader_holds_is_not_dropped(tiers):
    bank = BlockBank(SPEC, slots=1, blocks_per_stream=4, on_full="drop_oldest", **tiers)
    bank.open([0], [7])
    append(bank, {0: 7}, 4)
    with bank.reader(0) as reader:
        assert append(bank, {0: 7}, 2).tolist() == [[REFUSED, REFUSED]]
        check(reader, 7, [0, 1, 2, 3])
    assert append(bank, {0: 7}, 2).tolist() == [[4, 5]]
    check_all(bank, 0, 7)
    bank.close()


def test_a_released_stream_lives_as_long_as_its_reader(tiers):
    bank = BlockBank(SPEC, slots=1, **tiers)
    bank.open([0], [7])
    append(bank, {0: 7}, 8)
    reader = bank.reader(0)
    bank.release([0])
    bank.open([0], [7])
    append(bank, {0: 7}, 20)
    check(reader, 7, [0, 3, 7])
    reader.close()
    reader.close()
    append(bank, {0: 7}, 20)
    check_all(bank, 0, 7)
    with pytest.raises(ValueError, match="closed"):
        reader.representatives(0)
    bank.close()


def test_nothing_grows_over_ten_times_the_capacity(tiers):
    bank = BlockBank(SPEC, slots=2, blocks_per_stream=6, on_full="drop_oldest", **tiers)
    sizes, files = [], []
    folder = tiers.get("disk_folder")
    for turn in range(12):
        bank.open([0, 1], [7 + turn, 8 + 100 * turn])
        append(bank, {0: 7 + turn, 1: 8 + 100 * turn}, 5)
        append(bank, {0: 7 + turn, 1: 8 + 100 * turn}, 5)
        snapshot(bank, [0, 1])
        sizes.append(sum(bank.bytes().values()))
        files.append(len([*folder.rglob("*")]) if folder else 0)
        bank.release([0, 1])
    assert max(sizes[4:]) <= sizes[4] and max(files[4:]) <= files[4]
    assert bank.held_bytes() == 0
    bank.close()


def test_bytes_are_what_the_blocks_need_and_budgets_hold(tiers):
    bank = BlockBank(SPEC, slots=2, **tiers)
    bank.open([0, 1], [7, 8])
    append(bank, {0: 7, 1: 8}, 5)
    assert bank.block_bytes == BLOCK + MEAN == 2 * 3 * 4 * 2 * 6 * 4 + 3 * 2 * 6 * 4
    assert bank.held_bytes() == 10 * bank.block_bytes
    for tier, used in bank.bytes().items():
        assert used <= tiers.get(f"{tier}_bytes", 0)
    bank.close()


# Snapshots


def test_restore_is_bit_for_bit_and_appending_goes_on(tiers):
    bank = BlockBank(SPEC, slots=3, **tiers)
    bank.open([0, 2], [7, 9])
    append(bank, {0: 7, 2: 9}, 5)
    append(bank, {2: 9}, 2)
    state = snapshot(bank, [0, 2])
    append(bank, {0: 7, 2: 9}, 3)  # after the snapshot: to be forgotten
    bank.load([1, 0], state)
    assert bank.count([1, 0]).tolist() == [5, 7]
    append(bank, {1: 7, 0: 9}, 4)
    check_all(bank, 1, 7)
    check_all(bank, 0, 9)
    bank.close()


def test_incremental_snapshots_never_hold_a_block_twice_and_chain_up(tiers):
    bank = BlockBank(SPEC, slots=2, blocks_per_stream=7, on_full="drop_oldest", **tiers)
    bank.open([0, 1], [7, 9])
    append(bank, {0: 7, 1: 9}, 3)
    full, held = snapshot(bank, [0, 1]), 6
    for count in (2, 1, 4, 3):  # the third one drops blocks
        append(bank, {0: 7, 1: 9}, count)
        change = snapshot(bank, [0, 1], incremental=True)
        new = sum(int(rows.count_N.sum()) for name, rows in change.rows.items() if name == "blocks.keys")
        assert new == (0 if "disk_bytes" in tiers else 2 * count)
        full, held = full.apply(change), held + new
    bank.load([0, 1], full)
    assert bank.first([0, 1]).tolist() == [6, 6]
    check_all(bank, 0, 7)
    check_all(bank, 1, 9)
    bank.close()


def test_a_snapshot_can_be_cut_by_stream_over_two_banks(tiers):
    bank = BlockBank(SPEC, slots=3, **tiers)
    bank.open([0, 1, 2], [7, 8, 9])
    append(bank, {0: 7, 1: 8, 2: 9}, 6)
    state = snapshot(bank, [0, 1, 2])
    bank.close()
    shards = []
    for keep, keys in (([True, False, True], [7, 9]), ([False, True, False], [8])):
        shard = BlockBank(SPEC, slots=3, **tiers)
        shard.load(list(range(len(keys))), state.select(keep))
        shards.append((shard, keys))
    for shard, keys in shards:
        append(shard, dict(enumerate(keys)), 5)
    for shard, keys in shards:
        for slot, key in enumerate(keys):
            check_all(shard, slot, key)
        shard.close()


def test_files_that_recent_snapshots_name_stay_and_older_ones_go(tmp_path):
    bank = BlockBank(SPEC, slots=1, snapshots_kept=2, **budgets("disk", tmp_path, 60))
    bank.open([0], [7])
    append(bank, {0: 7}, 4)
    state = snapshot(bank, [0])
    bank.release([0])
    bank.open([0], [7])
    append(bank, {0: 7}, 9)
    held_by_both = bank.bytes()["disk"]
    other = BlockBank(SPEC, slots=1, **budgets("disk", tmp_path, 60))
    other.load([0], state)
    check_all(other, 0, 7)
    other.close()
    bank.open([], [])
    for _ in range(2):
        snapshot(bank, [])
    assert bank.bytes()["disk"] < held_by_both
    with pytest.raises(RecoveryError, match="cannot be read"):
        BlockBank(SPEC, slots=1, **budgets("disk", tmp_path, 60)).load([0], state)
    bank.close()


def test_files_that_waited_to_be_deleted_when_a_run_was_killed_go_after_resuming(tmp_path):
    bank = BlockBank(SPEC, slots=2, **budgets("disk", tmp_path, 60))
    bank.open([0, 1], [7, 8])
    append(bank, {0: 7, 1: 8}, 4)
    snapshot(bank, [0, 1])
    bank.release([1])
    state = snapshot(bank, [0])
    assert len([*tmp_path.rglob("*.blocks")]) == 2
    resumed = BlockBank(SPEC, slots=2, **budgets("disk", tmp_path, 60))
    resumed.load([0], state)
    for _ in range(3):
        assert len([*tmp_path.rglob("*.blocks")]) == 2
        snapshot(resumed, [0])
    assert len([*tmp_path.rglob("*.blocks")]) == 1
    check_all(resumed, 0, 7)


def test_what_a_snapshot_cannot_be_resumed_with_is_named(tmp_path):
    disk = BlockBank(SPEC, slots=1, **budgets("disk", tmp_path, 20))
    disk.open([0], [7])
    append(disk, {0: 7}, 8)
    state = snapshot(disk, [0])
    with pytest.raises(RecoveryError, match="with a disk tier"):
        BlockBank(SPEC, slots=1, **budgets("device", tmp_path, 20)).load([0], state)
    with pytest.raises(RecoveryError, match="more blocks than the budgets allow"):
        BlockBank(SPEC, slots=1, blocks_per_stream=7, **budgets("disk", tmp_path, 20)).load([0], state)
    wider = BlockSpec(layers=3, groups=2, tokens=4, dim=8)
    with pytest.raises(RecoveryError, match="another layout"):
        BlockBank(wider, slots=1, **budgets("disk", tmp_path, 20)).load([0], state)
    memory = BlockBank(SPEC, slots=1, **budgets("device", tmp_path, 20))
    memory.open([0], [7])
    append(memory, {0: 7}, 8)
    with pytest.raises(RecoveryError, match="options of the first run"):
        BlockBank(wider, slots=1, **budgets("device", tmp_path, 20)).load([0], snapshot(memory, [0]))
    with pytest.raises(RecoveryError, match="has no blocks 'blocks'"):
        memory.load([], State())
    larger = BlockBank(SPEC, slots=1, **budgets("disk", tmp_path, 50))  # more room is fine
    larger.load([0], state)
    append(larger, {0: 7}, 8)
    check_all(larger, 0, 7)


CHILD = """
import os, pickle, signal, sys
sys.path[:0] = [{root!r}, {here!r}]
from test_block_bank import *
reader = FileReader(pickle.loads(sys.stdin.buffer.read()))
check(reader, 7, [2, 5, 9])
keys, _ = blocks(7, range(reader.first, reader.below))
assert torch.equal(reader.representatives(1), keys[:, 1].float().mean(2))
print(len(reader), flush=True)

bank = BlockBank(SPEC, slots=2, **budgets("disk", Path({folder!r}), 60))
bank.open([0, 1], [7, 8])
append(bank, {{0: 7, 1: 8}}, 5)
state = snapshot(bank, [0])  # the second stream is younger than the snapshot
Path({state!r}).write_bytes(pickle.dumps(state))
append(bank, {{0: 7, 1: 8}}, 20)
keys, values = blocks(99, range(3))
bank.append_layer(0, [0], keys[None, :, 0], values[None, :, 0])
os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass(frozen=True)
class OtherProcess:
    """What another process did: it read ten blocks of ``bank``, wrote a bank of its own to ``folder``, and was killed."""

    bank: BlockBank
    shared: bytes
    folder: Path
    state: Path
    ended: subprocess.CompletedProcess[bytes]


@pytest.fixture(scope="module")
def other_process(tmp_path_factory: pytest.TempPathFactory) -> OtherProcess:
    """One for two tests: it takes seconds to import all that it needs."""
    path = tmp_path_factory.mktemp("processes")
    bank = BlockBank(SPEC, slots=1, **budgets("disk_cached", path / "shared", 60))
    bank.open([0], [7])
    append(bank, {0: 7}, 10)
    with bank.reader(0) as reader:
        shared = pickle.dumps(reader.shared())
        append(bank, {0: 7}, 10)
        folder, state = path / "blocks", path / "state"
        code = CHILD.format(root=str(ROOT), here=str(Path(__file__).parent), folder=str(folder), state=str(state))
        ended = subprocess.run([sys.executable, "-c", code], input=shared, check=False, timeout=240, capture_output=True)
    return OtherProcess(bank, shared, folder, state, ended)


@pytest.mark.heavy
def test_after_kill_minus_9_the_snapshot_restores_and_what_came_later_is_overwritten(other_process):
    folder, died = other_process.folder, other_process.ended
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    bank = BlockBank(SPEC, slots=2, **budgets("disk", folder, 60))
    bank.load([0], pickle.loads(other_process.state.read_bytes()))
    assert bank.count([0]).tolist() == [5]
    check_all(bank, 0, 7)
    bank.open([1], [8])
    for _ in range(3):
        append(bank, {0: 7, 1: 8}, 7)
    check_all(bank, 0, 7)
    check_all(bank, 1, 8)
    files = {path for path in folder.rglob("*.blocks")}
    bank.release([0, 1])
    for _ in range(4):
        snapshot(bank, [])
    assert files and not [*folder.rglob("*.blocks")]
    bank.close()


# Other threads, other processes


@pytest.mark.heavy
def test_readers_in_threads_see_their_moment_while_blocks_are_appended(tiers):
    bank = BlockBank(SPEC, slots=1, blocks_per_stream=25, on_full="drop_oldest", **tiers)
    bank.open([0], [7])
    append(bank, {0: 7}, 5)
    failures: list[BaseException] = []
    done = threading.Event()

    def ask(seed: int) -> None:
        draw = np.random.default_rng(seed)
        try:
            while not done.is_set():
                with bank.reader(0) as reader:
                    numbers = np.flatnonzero(draw.random(len(reader)) < 0.4) + reader.first
                    reader.prefetch(1, numbers)
                    check(reader, 7, numbers.tolist())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        append(bank, {0: 7}, 2)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    check_all(bank, 0, 7)
    bank.close()


@pytest.mark.heavy
def test_another_process_reads_the_same_files_while_blocks_are_appended(other_process):
    assert other_process.ended.stdout.decode() == "10\n", other_process.ended.stderr.decode()
    other_process.bank.release([0])
    with pytest.raises(RecoveryError, match="cannot be read"):
        FileReader(pickle.loads(other_process.shared))
    other_process.bank.close()


def test_only_files_can_be_shared_with_other_processes():
    bank = BlockBank(SPEC, slots=1, device_bytes=10 * (BLOCK + MEAN))
    bank.open([0], [7])
    with bank.reader(0) as reader, pytest.raises(ValueError, match="disk_folder"):
        reader.shared()


# Caches


def cached(pages: int, room: int = 40) -> BlockBank:
    bank = BlockBank(SPEC, slots=1, device_bytes=room * MEAN + pages * BLOCK, host_bytes=room * BLOCK)
    bank.open([0], [7])
    append(bank, {0: 7}, 30)
    return bank


def counts(bank: BlockBank) -> tuple[int, int]:
    return bank.tiers.near.hits, bank.tiers.near.misses


def test_what_was_read_last_stays_near_and_what_was_idle_longest_goes():
    bank = cached(pages=4)
    with bank.reader(0) as reader:
        for numbers in ([10, 11, 12, 13], [10, 11], [20, 21]):  # 12 and 13 go
            reader.gather(0, torch.tensor(numbers))
        hits, misses = counts(bank)
        reader.gather(0, torch.tensor([10, 11, 20, 21]))
        assert counts(bank) == (hits + 4, misses)
        reader.gather(0, torch.tensor([12, 13]))
        assert counts(bank) == (hits + 4, misses + 2)


def test_appending_does_not_push_out_what_questions_use():
    bank = cached(pages=4)
    with bank.reader(0) as reader:
        reader.gather(0, torch.tensor([1, 2, 3, 4]))
        append(bank, {0: 7}, 5)
        hits, misses = counts(bank)
        reader.gather(0, torch.tensor([1, 2, 3, 4]))
    assert counts(bank) == (hits + 4, misses)


def test_a_read_larger_than_the_cache_passes_it_by():
    bank = cached(pages=3)
    with bank.reader(0) as reader:
        check(reader, 7, list(range(30)))


def test_what_was_prefetched_is_near_when_it_is_gathered():
    bank = cached(pages=6)
    with bank.reader(0) as reader:
        reader.prefetch(1, torch.tensor([20, 22, 24]))
        check_layer = reader.gather(1, torch.tensor([20, 22, 24]))[0]
        assert counts(bank) == (3, 0)
        assert torch.equal(check_layer, blocks(7, [20, 22, 24])[0][:, 1])
    bank.close()


def test_a_buffer_is_reused_by_the_next_gather(tiers):
    bank = BlockBank(SPEC, slots=1, **tiers)
    bank.open([0], [7])
    append(bank, {0: 7}, 9)
    buffer = ReadBuffer()
    with bank.reader(0) as reader:
        first, _ = reader.gather(0, torch.tensor([0, 2]), buffer)
        assert torch.equal(first, blocks(7, [0, 2])[0][:, 0])
        second, _ = reader.gather(1, torch.tensor([1, 8]), buffer)
        assert torch.equal(second, blocks(7, [1, 8])[0][:, 1])
        assert first.data_ptr() == second.data_ptr()
    bank.close()


# What a user may get wrong


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"device_bytes": BLOCK}, "device_bytes: banks for 2 streams need"),
        ({"device_bytes": 10**6, "host_bytes": BLOCK}, "host_bytes: banks for 2 streams need"),
        ({"device_bytes": MEAN, "host_bytes": 10**6}, "does not hold the representatives"),
        ({"device_bytes": 10**6, "disk_bytes": 10**6}, "give both or neither"),
        ({"device_bytes": 10**6, "disk_bytes": 10**4, "disk_folder": "x"}, "disk_bytes: banks for 2 streams need"),
        ({"device_bytes": -1}, "device_bytes=-1"),
        ({"device_bytes": 10**6, "on_full": "drop"}, "on_full='drop'; use 'refuse' or 'drop_oldest'"),
        ({"device_bytes": 10**6, "representatives": "disk"}, "representatives='disk'"),
        ({"device_bytes": 10**6, "representatives": "host"}, "does not hold the representatives"),
        ({"device_bytes": 10**6, "blocks_per_stream": 0}, "blocks_per_stream=0"),
    ],
)
def test_budgets_that_cannot_work_are_refused_at_the_start(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        BlockBank(SPEC, slots=2, **kwargs)


def test_a_spec_that_cannot_be_stored_is_refused():
    with pytest.raises(ConfigError, match="tokens=0"):
        BlockSpec(layers=1, groups=1, tokens=0, dim=4)
    with pytest.raises(ConfigError, match=r"dtype=torch\.int8"):
        BlockSpec(layers=1, groups=1, tokens=1, dim=4, dtype=torch.int8)


def test_slots_without_a_stream_and_keys_in_use_are_named():
    bank = BlockBank(SPEC, slots=2, device_bytes=10 * (BLOCK + MEAN))
    with pytest.raises(ValueError, match="slot 1 has no stream"):
        bank.reader(1)
    bank.open([0], [7])
    with pytest.raises(ValueError, match="slot 0 belongs to another stream"):
        bank.open([0], [8])
    with pytest.raises(ValueError, match="key 7 is open already"):
        bank.open([1], [7])
    with pytest.raises(ValueError, match="must be distinct"):
        bank.append_layer(0, [0, 0], torch.zeros(2, 1, 2, 4, 6), torch.zeros(2, 1, 2, 4, 6))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["device", "host", "host_cached", "disk", "disk_cached"])
def test_a_bank_on_a_gpu_reads_what_a_bank_on_the_cpu_reads(kind, tmp_path):
    bank = BlockBank(SPEC, slots=2, device="cuda", **budgets(kind, tmp_path, 60))
    bank.open([0, 1], [7, 8])
    pairs = [blocks(key, range(25)) for key in (7, 8)]
    keys, values = (torch.stack([pair[i] for pair in pairs]).cuda() for i in range(2))
    for start in range(0, 25, 5):
        for layer in range(SPEC.layers):
            part = slice(start, start + 5)
            bank.append_layer(layer, [0, 1], keys[:, part, layer], values[:, part, layer])
    for slot, numbers in itertools.product((0, 1), ([0, 4, 9, 24], [1, 4, 20], list(range(25)))):
        with bank.reader(slot) as reader:
            reader.prefetch(1, torch.tensor(numbers))
            for layer in range(SPEC.layers):
                got = reader.gather(layer, torch.tensor(numbers, device="cuda"))
                assert torch.equal(got[0], keys[slot, numbers, layer])
                assert torch.equal(got[1], values[slot, numbers, layer])
    bank.close()
