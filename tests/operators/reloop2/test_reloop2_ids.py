"""Impression ids as keys: texts of any length in any batch, salts, and the index against a dict."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.reloop2.ids import MAX_ID_BYTES, IdIndex, id_keys

TEXTS = ["", "a", "b", "ab", "12345678", "123456789", "1234567\x00", "é" * 20, "x" * 200]


def test_text_has_the_same_key_alone_and_beside_others():
    together, _ = id_keys(pa.array(TEXTS))
    alone = [int(id_keys(pa.array([text]))[0][0]) for text in TEXTS]
    sliced, _ = id_keys(pa.array(["y" * 100, *TEXTS])[1:])
    large, _ = id_keys(pa.array(TEXTS, pa.large_string()))
    assert together.tolist() == alone == sliced.tolist() == large.tolist()


def test_different_texts_have_different_keys():
    texts = [f"{kind}-{i}" for kind in ("imp", "impression", "") for i in range(20_000)]
    assert len(np.unique(id_keys(pa.array(texts))[0])) == len(texts)


@pytest.mark.parametrize("column", [pa.array([5, 5, 7]), pa.array(["u", "u", "v"])], ids=["int64", "string"])
def test_salt_keeps_streams_apart(column: pa.Array):
    keys, _ = id_keys(column, np.array([1, 2, 2]))
    assert len(set(keys.tolist())) == 3
    assert keys.tolist() == id_keys(column, np.array([1, 2, 2]))[0].tolist()


def test_integers_without_salt_are_their_own_keys():
    values = [0, -1, 2**63 - 1, -(2**63)]
    assert id_keys(pa.array(values))[0].tolist() == values
    assert id_keys(pa.array([1, 2], pa.int32()))[0].tolist() == [1, 2]


def test_null_and_overlong_ids_are_missing():
    _, missing = id_keys(pa.array(["x" * MAX_ID_BYTES, "x" * (MAX_ID_BYTES + 1), None, "ok"]))
    assert missing.tolist() == [False, True, True, False]
    assert id_keys(pa.array([1, None]))[1].tolist() == [False, True]


def test_no_rows_have_no_keys():
    assert len(id_keys(pa.array([], pa.string()))[0]) == len(id_keys(pa.array([], pa.int64()))[0]) == 0
    assert id_keys(pa.array([None], pa.string()))[1].tolist() == [True]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(-5, 40), min_size=1, max_size=8, unique=True), max_size=20))
def test_index_is_a_dict_from_ids_to_their_latest_row(calls: list[list[int]]):
    """Rows are handed out in turn from 16, so that old ids lose theirs."""
    id_of_row = np.full(16, -99)
    index = IdIndex(lambda ids, rows: id_of_row[rows] == ids, slack=10)
    reference: dict[int, int] = {}
    turn = 0
    for ids in calls:
        rows = (turn + np.arange(len(ids))) % 16
        turn += len(ids)
        for key, row in zip(ids, rows.tolist(), strict=True):
            reference = {k: r for k, r in reference.items() if r != row and k != key} | {key: row}
            id_of_row[id_of_row == key] = -99
            id_of_row[row] = key
        index.put(np.array(ids), rows)
        asked = np.arange(-6, 42)
        assert index.find(asked).tolist() == [reference.get(int(key), -1) for key in asked]
