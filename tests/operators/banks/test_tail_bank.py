"""TailBank: rows rewritten as a whole, snapshots of one size, states that do not fit."""

import pytest
import torch

from connectors.errors import RecoveryError
from operators.banks import RowSpec, TailBank
from operators.state import State


def bank(capacity: int = 5, width: int = 2) -> TailBank:
    return TailBank("tail", RowSpec((width,)), slots=3, capacity=capacity)


def test_rows_are_replaced_as_a_whole_and_zeros_stand_behind_them() -> None:
    tail = bank()
    rows = torch.arange(8.0).view(4, 2)
    tail.write(1, rows)
    tail.write(1, torch.cat([tail.read(1)[2:], rows[:1]]))
    assert tail.read(1).tolist() == [[4.0, 5.0], [6.0, 7.0], [0.0, 1.0]]
    tail.write(1, tail.read(1)[1:])  # a part of what stands there
    assert tail.read(1).tolist() == [[6.0, 7.0], [0.0, 1.0]]
    assert not tail.rows_SC[1, 2:].any() and not len(tail.read(0))
    with pytest.raises(ValueError, match="6 rows do not fit; the capacity is 5"):
        tail.write(0, torch.zeros(6, 2))
    tail.release([1])
    assert not tail.rows_SC.any()


def test_a_snapshot_has_one_size_and_comes_back_bit_for_bit() -> None:
    tail, state = bank(), State(streams=["a", "b"])
    tail.write(2, torch.randn(3, 2))
    tail.export([2, 0], state, incremental=False)
    size, wanted = state.bytes(), tail.read(2).clone()
    other = bank()
    other.write(1, torch.ones(5, 2))
    other.load([1, 2], state)
    assert torch.equal(other.read(1), wanted) and not len(other.read(2))
    again = State(streams=["a", "b"])
    other.export([1, 2], again, incremental=True)
    assert again.bytes() == size and torch.equal(again.dense["tail.rows"], state.dense["tail.rows"])
    with pytest.raises(RecoveryError, match=r"tail of the snapshot is \(5, 2\)"):
        bank(capacity=4).load([0], state)
    other.load([], State())
    assert not other.rows_SC.any()
    assert tail.bytes()["device"] == 3 * TailBank.bytes_per_slot(tail.row, 5)
