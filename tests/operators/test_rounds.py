"""Round j holds the j-th row of each stream."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from operators.rounds import rank_within, rounds


@given(st.lists(st.integers(0, 5), max_size=30))
def test_rounds_are_those_of_counting_one_by_one(slots: list[int]):
    seen: dict[int, int] = {}
    wanted: list[list[int]] = []
    ranks = []
    for row, slot in enumerate(slots):
        turn = seen[slot] = seen.get(slot, -1) + 1
        ranks.append(turn)
        if turn == len(wanted):
            wanted.append([])
        wanted[turn].append(row)
    assert rank_within(np.array(slots, np.int64)).tolist() == ranks
    assert [part.tolist() for part in rounds(np.array(slots, np.int64))] == wanted
