"""Configs: JSON round trip, FuxiCTR's settings, and what is refused."""

import json

import pytest
from ctr_world import CONFIGS

from connectors.errors import ConfigError
from models.reloop2.config import CtrConfig, DCNv2Config, DINConfig, SDIMConfig, from_fuxictr


@pytest.mark.parametrize("name", CONFIGS)
def test_json_round_trip(name: str):
    config = CONFIGS[name]
    assert CtrConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_settings_of_a_fuxictr_experiment_are_taken():
    params = {
        "model": "DCNv2",
        "model_structure": "parallel",
        "num_cross_layers": 2,
        "parallel_dnn_hidden_units": [1024, 512, 256],
        "stacked_dnn_hidden_units": [500, 500],
        "dnn_activations": "ReLU",
        "embedding_dim": 64,
        "net_dropout": 0.1,
        "batch_norm": True,
        "learning_rate": 1e-3,
        "embedding_regularizer": 0.005,
        "use_low_rank_mixture": False,
    }
    assert from_fuxictr(params) == DCNv2Config(cross_layers=2)
    stacked = from_fuxictr(params | {"model_structure": "stacked"})
    assert (stacked.structure, stacked.hidden_units) == ("stacked", (500, 500))


def test_field_names_of_din_form_groups_as_in_fuxictr():
    params = {"model": "DIN", "din_use_softmax": True, "attention_dropout": 0.1, "attention_hidden_activations": "Dice"}
    for given, wanted in (
        ("item_id", (("item_id",),)),
        (("item_id", "cate_id"), (("item_id", "cate_id"),)),
        (["item_id", "cate_id"], (("item_id",), ("cate_id",))),
        ([("item_id", "cate_id")], (("item_id", "cate_id"),)),
    ):
        found = from_fuxictr(params | {"din_target_field": given, "din_sequence_field": given})
        assert isinstance(found, DINConfig)
        assert found.target_fields == found.sequence_fields == wanted


def test_fuxictr_defaults_are_those_of_fuxictr():
    assert from_fuxictr({"model": "SDIM"}) == SDIMConfig(batch_norm=False, dropout=0.0, l2_norm=False, compat="fuxictr")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": "dcn"}, r"network 'dcn' is not known \(did you mean 'dcnv2'\?\)"),
        ({"network": "dcnv2", "cross_layer": 2}, r"no setting 'cross_layer' \(did you mean 'cross_layers'\?\)"),
        ({"network": "dcnv2", "cross_layers": 0}, "cross_layers is 0; it must be 1 or more"),
        ({"network": "dcnv2", "cross_layers": "two"}, "has the wrong type"),
        ({"network": "deepfm", "hidden_units": []}, r"hidden_units must be layer widths above 0, at least one, got \[\]"),
        ({"network": "deepfm", "activation": "gelu"}, "activation 'gelu' is not known"),
        ({"network": "deepfm", "dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"network": "din", "target_fields": [["item_id"]]}, "must be groups of equal sizes"),
        ({"network": "din", "target_fields": [], "sequence_fields": []}, "are empty"),
        ({"network": "sdim", "target_fields": ["item_id"]}, "must be equally many names"),
        ({"network": "sdim", "num_heads": 3}, "num_heads=3 must divide the width 64"),
        ({"network": "fibinet", "bilinear": "all"}, "bilinear 'all' is not known"),
    ],
)
def test_unusable_configs_are_refused(values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        CtrConfig.from_json(values)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"model": "AOANet"}, "model 'AOANet' is not built here"),
        ({"model": "DCNv2", "use_low_rank_mixture": True}, "low-rank cross layers"),
        ({"model": "DCNv2", "model_structure": "crossnet_only"}, "structure 'crossnet_only' is not known"),
    ],
)
def test_variants_of_fuxictr_that_are_not_built_are_refused(params: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        from_fuxictr(params)
