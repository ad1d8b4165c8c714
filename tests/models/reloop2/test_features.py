"""Arrow columns to tensors: unknown values, bad rows, histories of every list type, against a row-by-row reference."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from ctr_world import FEATURES
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import SchemaError
from models.reloop2.feature_map import Feature, FeatureMap
from models.reloop2.features import encode


def one(feature: Feature, column: pa.Array):
    """Encode one column."""
    encoded = encode(pa.record_batch([column], [feature.name]), FeatureMap((feature,)), "test")
    return encoded.columns[feature.name], encoded


def test_row_numbers_outside_the_table_are_unknown():
    feature = Feature(name="a", vocab_size=5)
    for kind in (pa.int8(), pa.int32(), pa.int64(), pa.uint8()):
        assert one(feature, pa.array([0, 4, 5, 77], kind))[0].tolist() == [0, 4, 4, 4]
    assert one(feature, pa.array([-1, -(2**40), 3]))[0].tolist() == [4, 4, 3]
    assert one(feature, pa.array([2**64 - 1, 2], pa.uint64()))[0].tolist() == [4, 2]
    assert one(Feature(name="a", vocab_size=5, oov_idx=1), pa.array([9]))[0].tolist() == [1]


def test_values_outside_the_vocabulary_are_unknown():
    numbers = Feature(name="a", vocab_size=4, vocabulary=(10, 20))
    assert one(numbers, pa.array([20, 10, 15], pa.int16()))[0].tolist() == [2, 1, 3]
    unsorted = Feature(name="a", vocab_size=5, vocabulary=(20, -1, 10))
    assert one(unsorted, pa.array([10, -1, 20, 30, -7, None]))[0].tolist() == [3, 2, 1, 4, 4, 4]
    words = Feature(name="a", vocab_size=4, vocabulary=("x", "y"))
    assert one(words, pa.array(["y", "z", "", "x"]))[0].tolist() == [2, 3, 3, 1]
    assert one(words, pa.array(["y", "z", "x"], pa.large_string()))[0].tolist() == [2, 3, 1]
    assert one(words, pa.array(["y", "z", "x"]).dictionary_encode())[0].tolist() == [2, 3, 1]


def test_numbers_are_scaled():
    column, encoded = one(FEATURES["age"], pa.array([40, 55], pa.int16()))
    assert column.dtype == torch.float32 and column.tolist() == [0.0, 1.5]
    assert not encoded.bad_B.any() and encoded.reasons == [None, None]


def test_bad_rows_carry_their_reasons_and_harmless_values():
    batch = pa.record_batch(
        {
            "type": pa.array([1, None, 2, 3, 1], pa.int32()),
            "item_id": pa.array([1, 2, 3, 4, 5], pa.int32()),
            "cate_id": pa.array([1, 2, 3, 4, 5], pa.int32()),
            "age": pa.array([40.0, math.nan, math.inf, 1e300, 40.0]),
            "item_history": pa.array([[1], [2], [], [3], None], pa.list_(pa.int32())),
            "cate_history": pa.array([[1], [2], [], [3], []], pa.list_(pa.int32())),
        }
    )
    encoded = encode(batch, FEATURES, "test")
    assert encoded.bad_B.tolist() == [False, True, True, True, True]
    age = "feature 'age' is null or not a finite number"
    assert encoded.reasons[:4] == [None, f"feature 'type' is null; {age}", age, age]
    assert encoded.reasons[4] == "feature 'item_history' is null (an empty history is an empty list)"
    assert encoded.columns["age"].isfinite().all()
    assert encoded.columns["type"].tolist() == [1, 4, 2, 3, 1]
    assert encoded.columns["item_history"].sum(1).tolist() == [1, 2, 0, 3, 0]


histories = st.lists(
    st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(-2, 9)), max_size=9)), min_size=1, max_size=8
)


@given(histories, st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_histories_keep_their_latest_entries(rows: list, max_len: int, skip: int):
    feature = Feature(name="h", kind="sequence", vocab_size=8, max_len=max_len)
    wanted = []
    for row in rows:
        known = [v if v is not None and 0 <= v < 8 else 7 for v in (row or [])][-max_len:]
        wanted.append([0] * (max_len - len(known)) + known)
    for kind in (pa.list_(pa.int32()), pa.large_list(pa.int64())):
        column = pa.array([[1, 2, 3]] * skip + rows, kind).slice(skip)
        found, encoded = one(feature, column)
        assert found.tolist() == wanted
        assert encoded.bad_B.tolist() == [row is None for row in rows]


def test_fixed_size_histories_are_read_with_their_own_padding():
    feature = Feature(name="h", kind="sequence", vocab_size=8, max_len=3)
    column = pa.array([[9, 9], [0, 5], None, [1, 2]], pa.list_(pa.int32(), 2))
    assert one(feature, column)[0].tolist() == [[0, 7, 7], [0, 0, 5], [0, 0, 0], [0, 1, 2]]
    assert one(feature, column.slice(1, 2))[0].tolist() == [[0, 0, 5], [0, 0, 0]]
    wide = pa.array([[1, 2, 3, 4]], pa.list_(pa.int32(), 4))
    assert one(feature, wide)[0].tolist() == [[2, 3, 4]]


def test_histories_of_words_use_the_vocabulary():
    feature = Feature(name="h", kind="sequence", vocab_size=4, vocabulary=("x", "y"), max_len=3)
    assert one(feature, pa.array([["y", "?"], []]))[0].tolist() == [[0, 2, 3], [0, 0, 0]]


def test_an_empty_batch_has_columns_without_rows():
    batch = pa.RecordBatch.from_pylist([], schema=pa.schema(FEATURES.arrow_fields()))
    encoded = encode(batch, FEATURES, "test")
    assert {name: tuple(column.shape) for name, column in encoded.columns.items()} == {
        feature.name: (0, 6) if feature.kind == "sequence" else (0,) for feature in FEATURES
    }
    assert encoded.reasons == []


def test_encoding_a_large_batch_is_the_same_as_encoding_its_parts():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 12, 500)
    lists = [rng.integers(0, 30, n).tolist() for n in lengths]
    feature = Feature(name="h", kind="sequence", vocab_size=25, max_len=6)
    column = pa.array(lists, pa.list_(pa.int32()))
    whole = one(feature, column)[0]
    parts = torch.cat([one(feature, column.slice(start, 70))[0] for start in range(0, 500, 70)])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(
    ("feature", "column", "message"),
    [
        (Feature(name="a", vocab_size=3), pa.array(["x"]), "holds string; the model takes integers"),
        (Feature(name="a", vocab_size=3), pa.array([0.5]), "holds double; the model takes integers"),
        (Feature(name="a", vocab_size=3, vocabulary=("x",)), pa.array([1]), "the model takes strings"),
        (Feature(name="a", kind="numeric"), pa.array(["1"]), "the model takes numbers"),
        (Feature(name="a", kind="sequence", vocab_size=3, max_len=2), pa.array([1]), "the model takes lists"),
        (Feature(name="a", kind="sequence", vocab_size=3, max_len=2), pa.array([["x"]]), "the model takes integers"),
    ],
)
def test_columns_of_another_kind_are_refused(feature: Feature, column: pa.Array, message: str):
    with pytest.raises(SchemaError, match=message):
        one(feature, column)


def test_missing_columns_are_named_with_the_place():
    with pytest.raises(SchemaError, match=r"node 'ctr': columns \['item_id', 'cate_id', 'age', .*\] of the model are missing"):
        encode(pa.record_batch({"type": pa.array([1])}), FEATURES, "node 'ctr'")
