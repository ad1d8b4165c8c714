"""Tensors that belong to no stream: what is added up over shards, and changes of single entries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import RecoveryError
from operators.state import Patch, Rows, State
from pipelines.runtime.manifest import OperatorState
from pipelines.runtime.messages import SnapshotFile
from pipelines.runtime.recovery import restore_operator
from pipelines.runtime.snapshots import read_chain, write_snapshot

CELLS = 7


class Kept:
    """Stands for an operator: keeps what it is given."""

    def restore(self, state: State) -> None:
        self.state = state


def counted(events: Sequence[int], stream: str) -> State:
    cells = torch.bincount(torch.tensor(events, dtype=torch.int64), minlength=CELLS)
    return State(streams=[stream], dense={"n": torch.tensor([len(events)])}, additive={"cells": cells})


@given(events=st.lists(st.integers(0, CELLS - 1), max_size=40), cuts=st.lists(st.integers(0, 40), min_size=2, max_size=2))
@settings(max_examples=50, deadline=None)
def test_parts_counted_by_several_shards_add_up_to_what_one_would_have_counted(events: list[int], cuts: list[int]) -> None:
    a, b = sorted(cuts)
    parts = [counted(part, str(i)) for i, part in enumerate((events[:a], events[a:b], events[b:]))]
    before = [part.additive["cells"].clone() for part in parts]
    merged = State.merge(parts)
    assert torch.equal(merged.additive["cells"], counted(events, "").additive["cells"])
    assert all(torch.equal(part.additive["cells"], cells) for part, cells in zip(parts, before, strict=True))


def test_another_number_of_shards_gives_the_whole_to_shard_0_and_zeros_to_the_others(tmp_path: Path) -> None:
    files = [write_snapshot(counted([i, i, 6], f"stream{i}"), tmp_path, f"{i}") for i in range(2)]
    states = [OperatorState((file,)) for file in files]
    restored = [Kept() for _ in range(3)]
    for shard, operator in enumerate(restored):
        restore_operator(operator, states, tmp_path, shard=shard, shards=3)  # type: ignore[arg-type]
    assert [operator.state.additive["cells"].tolist() for operator in restored] == [[2, 2, 0, 0, 0, 0, 2], [0] * 7, [0] * 7]
    assert sorted(stream for operator in restored for stream in operator.state.streams) == ["stream0", "stream1"]


def test_the_same_number_of_shards_gives_each_its_own_part_back(tmp_path: Path) -> None:
    states = [OperatorState((write_snapshot(counted([i], f"s{i}"), tmp_path, f"{i}"),)) for i in range(2)]
    for shard in range(2):
        operator = Kept()
        restore_operator(operator, states, tmp_path, shard=shard, shards=2)  # type: ignore[arg-type]
        assert operator.state.additive["cells"].nonzero().tolist() == [[shard]]


def test_what_does_not_add_up_exactly_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'sums' is torch.float32; it must be of integers"):
        State.merge([State(additive={"sums": torch.zeros(2)})])
    with pytest.raises(RecoveryError, match=r"'n' has shape \[2\] in one shard and \[3\] in another"):
        State.merge([State(additive={"n": torch.zeros(size, dtype=torch.int64)}) for size in (2, 3)])


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_chain_of_patches_gives_the_tensors_as_they_stood_at_its_end(data: st.DataObject) -> None:
    cells, pool = torch.zeros((CELLS, 2), dtype=torch.int64), torch.zeros(CELLS)
    full = State(shared={"pool": pool.clone(), "fixed": torch.ones(2)}, additive={"cells": cells.clone()})
    state = full
    for step in range(data.draw(st.integers(1, 4))):
        changed = torch.tensor(sorted(data.draw(st.sets(st.integers(0, CELLS - 1)))), dtype=torch.int64)
        cells[changed] += step + 1
        pool[changed] = step / 3
        patches = {"cells": Patch(changed, cells[changed]), "pool": Patch(changed, pool[changed])}
        state = state.apply(State(patches=patches, incremental=True))
    assert torch.equal(state.additive["cells"], cells)
    assert torch.equal(state.shared["pool"], pool)
    assert torch.equal(state.shared["fixed"], torch.ones(2))
    assert not full.additive["cells"].any()  # a state owns its tensors: applying a change leaves the one before alone


def test_a_whole_tensor_replaces_the_one_before_and_may_be_patched_afterwards(tmp_path: Path) -> None:
    chain: list[SnapshotFile] = []
    ones = torch.ones(3, dtype=torch.int64)
    for number, state in enumerate(
        [
            counted([1, 2], "a"),
            State(incremental=True, additive={"cells": torch.arange(CELLS)}),
            State(incremental=True, patches={"cells": Patch(torch.tensor([0, 3, 6]), 10 * ones)}),
        ]
    ):
        chain.append(write_snapshot(state, tmp_path, str(number)))
    restored = read_chain(tmp_path, chain)
    assert restored.additive["cells"].tolist() == [10, 1, 2, 10, 4, 5, 10]
    assert restored.streams == ["a"]


def test_a_patch_of_a_tensor_that_is_not_there_is_refused() -> None:
    change = State(incremental=True, patches={"gone": Patch(torch.tensor([0]), torch.tensor([1]))})
    with pytest.raises(RecoveryError, match=r"changes \['gone'\], which the snapshot before has not"):
        State().apply(change)


def table(
    streams: list[str], changed: list[list[tuple[int, float]]], *, incremental: bool, closed: list[str] | None = None
) -> State:
    """A state whose streams have a table of three rows each, of which these are named."""
    pairs = [pair for rows in changed for pair in rows]
    rows = Rows(
        torch.full((len(streams),), 3),
        torch.tensor([len(rows) for rows in changed]),
        torch.tensor([index for index, _ in pairs], dtype=torch.int64),
        torch.tensor([value for _, value in pairs]),
    )
    return State(streams=streams, rows={"table": rows}, incremental=incremental, closed=closed or [])


def test_a_table_of_a_new_stream_is_zero_where_an_increment_does_not_say_otherwise() -> None:
    base = table(["a"], [[(0, 1.0), (1, 2.0), (2, 3.0)]], incremental=False)
    grown = base.apply(table(["b"], [[(1, 5.0)]], incremental=True))
    assert grown.select([name == "b" for name in grown.streams]).rows["table"].values_R.tolist() == [0.0, 5.0, 0.0]


def test_a_stream_that_ended_and_came_again_takes_over_nothing() -> None:
    base = table(["a"], [[(0, 1.0), (1, 2.0), (2, 3.0)]], incremental=False)
    again = base.apply(table(["a"], [[(1, 5.0)]], incremental=True, closed=["a"]))
    assert again.rows["table"].values_R.tolist() == [0.0, 5.0, 0.0]
