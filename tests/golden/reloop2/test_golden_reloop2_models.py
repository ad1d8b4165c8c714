"""Golden: outputs, hash buckets and parameter names of the click-through-rate networks."""

# B rows, T history length

import math
from pathlib import Path

import numpy as np
import pytest
import reloop2_model_cases as model_cases
import torch
from golden_cases import assert_complete, golden, read_json, read_npz
from reloop2_model_cases import assert_close, inputs, network

from models.reloop2.checkpoint import official_state
from models.reloop2.model import build_model
from models.reloop2.sdim import hash_interest, signatures


@pytest.mark.golden
def test_every_folder_has_cases_and_every_file_is_checked():
    assert_complete("reloop2", model_cases.KINDS)


@golden("reloop2", ".npz", *model_cases.NETWORK)
@torch.inference_mode()
def test_hidden_vector_and_probability(path: Path):
    arrays = read_npz(path)
    hidden_BD, logit_B = network(arrays)(inputs(arrays))
    assert_close(hidden_BD, arrays["out/h"], "h")
    assert_close(torch.sigmoid(logit_B), arrays["out/y_base"].reshape(-1), "y_base", scale=1.0)


@golden("reloop2", ".npz", *model_cases.HASHED)
@torch.inference_mode()
def test_hash_signatures_and_long_interest(path: Path):
    arrays = read_npz(path)
    model, columns = network(arrays), inputs(arrays)
    config = model.config
    target_BD = model.embedding_layer.concat(columns, config.target_fields)
    history_BTD = model.embedding_layer.concat(columns, config.sequence_fields)
    assert_close(target_BD, arrays["out/target_emb"], "target")
    assert_close(history_BTD, arrays["out/seq_emb"], "history")
    rotations = model.random_rotations[0]
    target_BH, history_BTH = signatures(target_BD, rotations), signatures(history_BTD, rotations)
    np.testing.assert_array_equal(target_BH, arrays["out/target_bucket"][:, 0])
    held_BT = columns[config.sequence_fields[0]] != 0
    np.testing.assert_array_equal(held_BT, arrays["in/mask"] != 0)
    np.testing.assert_array_equal(history_BTH[held_BT], arrays["out/seq_bucket"][held_BT.numpy()])
    interest_BD = hash_interest(target_BH, history_BTH, history_BTD, held_BT, l2_norm=config.l2_norm)
    assert_close(interest_BD, arrays["out/lsh_attention"], "long interest")


@golden("reloop2", ".json", *model_cases.KEYS)
def test_full_size_networks_have_the_official_parameters(path: Path):
    for name, entry in read_json(path).items():
        shapes = {key: shape for key, (shape, _) in entry["keys"].items()}
        config, features = model_cases.config_of_shapes(name, shapes)
        with torch.device("meta"):
            model = build_model(config, features)
        assert sum(parameter.numel() for parameter in model.parameters()) == entry["n_trainable"], name
        # Real zeros, so that tables which the map shares are found equal; the dtype is part of the record.
        stored = {key: torch.zeros(shape, dtype=getattr(torch, dtype)) for key, (shape, dtype) in entry["keys"].items()}
        ours = official_state(model, stored, name)
        wanted = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("hidden_mean")}
        assert {key: (tensor.shape, tensor.dtype) for key, tensor in ours.items()} == {
            key: (tensor.shape, tensor.dtype) for key, tensor in wanted.items()
        }
        repeated = sum(math.prod(shapes[key]) for key in shapes if key.endswith("_history.weight"))
        assert sum(tensor.numel() for tensor in ours.values()) + repeated == sum(math.prod(shape) for shape in shapes.values())
