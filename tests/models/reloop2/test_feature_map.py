"""Feature maps: FuxiCTR's file, fitting on columns, JSON, and what is refused."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from ctr_world import FEATURES

from connectors.errors import CheckpointMismatch, ConfigError, SchemaError
from models.reloop2.examples import fit_feature_map
from models.reloop2.feature_map import Feature, FeatureMap, fit_feature, read_fuxictr

OFFICIAL = {
    "dataset_id": "amazonelectronics_x1",
    "num_fields": 3,
    "features": [
        {"user_id": {"source": "user", "type": "meta"}},
        {"item_id": {"source": "item", "type": "categorical", "padding_idx": 0, "oov_idx": 62, "vocab_size": 63}},
        {"price": {"source": "item", "type": "numeric"}},
        {
            "item_history": {
                "type": "sequence",
                "feature_encoder": "layers.MaskedAveragePooling()",
                "share_embedding": "item_id",
                "padding_idx": 0,
                "max_len": 100,
                "oov_idx": 62,
                "vocab_size": 63,
            }
        },
    ],
}


def test_fuxictr_map_is_read_without_its_meta_columns(tmp_path: Path):
    wanted = FeatureMap(
        (
            Feature(name="item_id", vocab_size=63),
            Feature(name="price", kind="numeric"),
            Feature(name="item_history", kind="sequence", vocab_size=63, share_embedding="item_id", max_len=100),
        )
    )
    file = tmp_path / "feature_map.json"
    file.write_text(json.dumps(OFFICIAL))
    assert read_fuxictr(file) == wanted
    as_mapping = {name: spec for entry in OFFICIAL["features"] for name, spec in entry.items()}
    file.write_text(json.dumps(OFFICIAL | {"features": as_mapping}))
    assert read_fuxictr(file) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "has no 'features'"),
        ('{"features": [{"a": {"type": "categorical"}}]}', "must be rows of a table of 0"),
        ('{"features": [{"a": {"type": "embedding", "vocab_size": 3}}]}', "has kind 'embedding'"),
        ('{"features": [{"a": {"type": "meta"}}]}', "at least one"),
    ],
)
def test_another_file_is_no_feature_map(tmp_path: Path, text: str, message: str):
    file = tmp_path / "feature_map.json"
    file.write_text(text)
    with pytest.raises(CheckpointMismatch, match=message):
        read_fuxictr(file)
    with pytest.raises(CheckpointMismatch, match="cannot be read"):
        read_fuxictr(tmp_path / "none.json")


def test_json_round_trip():
    fitted = fit_feature("city", "categorical", pa.array(["b", "a", "b", None]))
    features = FeatureMap((*FEATURES.features, fitted))
    assert FeatureMap.from_json(json.loads(json.dumps(features.to_json()))) == features


def test_fitted_vocabulary_is_sorted_with_rows_for_padding_and_unknown():
    feature = fit_feature("city", "categorical", pa.chunked_array([["b", "a"], ["b", None, "c"]]))
    assert feature.vocabulary == ("a", "b", "c")
    assert (feature.vocab_size, feature.padding_idx, feature.unknown) == (5, 0, 4)
    assert fit_feature("city", "categorical", pa.array(["b", "a", "b"]), min_count=2).vocabulary == ("b",)
    assert fit_feature("n", "categorical", pa.array([7, -2], pa.int16())).vocabulary == (-2, 7)
    assert fit_feature("tags", "sequence", pa.array([["x", "y"], [], ["x"]]), max_len=3).vocabulary == ("x", "y")
    coded = pa.array(["u", "v", "u"]).dictionary_encode()
    assert fit_feature("code", "categorical", coded).vocabulary == ("u", "v")


def test_fitted_numbers_ignore_what_is_not_finite():
    feature = fit_feature("x", "numeric", pa.array([1.0, 3.0, None, float("nan"), float("inf")]))
    assert (feature.mean, feature.std) == (2.0, 1.0)
    assert fit_feature("constant", "numeric", pa.array([4, 4])).std == 1.0


def test_a_history_can_take_the_table_of_its_target():
    table = pa.table({"item": [3, 5], "seen": [[3], [5, 3]]})
    features = fit_feature_map(table, categorical=["item"], sequences={"seen": "item"}, max_len=2)
    assert features["seen"] == Feature(
        name="seen", kind="sequence", vocab_size=4, vocabulary=(3, 5), share_embedding="item", max_len=2
    )
    with pytest.raises(ConfigError, match="shares the table of 'brand'"):
        fit_feature_map(table, categorical=["item"], sequences={"seen": "brand"})


def test_arrow_fields_are_what_the_columns_should_be():
    features = FeatureMap((FEATURES["age"], FEATURES["item_id"], fit_feature("tags", "sequence", pa.array([["x"]]))))
    assert [field.type for field in features.arrow_fields()] == [pa.float32(), pa.int32(), pa.list_(pa.string())]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Feature(name="a", kind="numeric", std=0.0), ConfigError, "std is 0.0"),
        (lambda: Feature(name="a", vocab_size=3, oov_idx=3), ConfigError, "oov_idx 3 must be rows of a table of 3"),
        (lambda: Feature(name="a", kind="sequence", vocab_size=3), ConfigError, "max_len is 0"),
        (lambda: Feature(name="a", vocab_size=3, vocabulary=(1, 2)), ConfigError, "need 4 rows, vocab_size is 3"),
        (lambda: Feature(name="a", vocab_size=4, vocabulary=(1, "x")), ConfigError, "whole numbers or words, not both"),
        (lambda: Feature(name="a", vocab_size=4, vocabulary=()), ConfigError, "not empty"),
        (lambda: FeatureMap((FEATURES["age"], FEATURES["age"])), ConfigError, "different names"),
        (lambda: FeatureMap(FEATURES.features[4:]), ConfigError, "shares the table of 'item_id'"),
        (
            lambda: FeatureMap((Feature(name="a", vocab_size=3), Feature(name="b", vocab_size=4, share_embedding="a"))),
            ConfigError,
            "vocab_size 4 and 3",
        ),
        (lambda: FeatureMap.from_json([{"name": "a", "size": 3}]), ConfigError, "not known"),
        (lambda: fit_feature("a", "numeric", pa.array(["1"])), SchemaError, "must be of numbers"),
        (lambda: fit_feature("a", "numeric", pa.array([None], pa.float32())), ConfigError, "no finite value"),
        (lambda: fit_feature("a", "categorical", pa.array([0.5])), SchemaError, "must be of integers or strings"),
        (lambda: fit_feature("a", "sequence", pa.array([1])), SchemaError, "must be a list column"),
        (lambda: fit_feature("a", "categorical", pa.array(["x"]), min_count=2), ConfigError, "lower min_count"),
    ],
)
def test_unusable_features_are_refused(make, error: type, message: str):
    with pytest.raises(error, match=message):
        make()


def test_a_byte_order_mark_does_not_make_a_file_no_json(tmp_path: Path):
    (tmp_path / "marked.json").write_text("\ufeff" + json.dumps(OFFICIAL), encoding="utf-8")
    (tmp_path / "plain.json").write_text(json.dumps(OFFICIAL), encoding="utf-8")
    assert read_fuxictr(tmp_path / "marked.json") == read_fuxictr(tmp_path / "plain.json")
