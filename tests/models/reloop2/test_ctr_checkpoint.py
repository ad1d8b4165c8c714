"""Checkpoints: our files and FuxiCTR's, and everything that must not load."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from ctr_world import CONFIGS, FEATURES, columns

from connectors.errors import CheckpointMismatch
from models.reloop2 import checkpoint
from models.reloop2.base import CtrModel
from models.reloop2.feature_map import FeatureMap
from models.reloop2.header import read_model
from models.reloop2.model import build_model


def trained(name: str = "dcnv2", seed: int = 1) -> CtrModel:
    model = build_model(CONFIGS[name], FEATURES, seed=seed)
    model.set_hidden_mean(torch.arange(model.hidden_dim, dtype=torch.float32))
    return model


def official(model: CtrModel, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the state dict as FuxiCTR writes it: tables under doubled names, shared ones repeated."""
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("hidden_mean"):
            state[
                prefix + name.replace("embedding_layer.embedding_layers", "embedding_layer.embedding_layer.embedding_layers")
            ] = tensor
    for feature in FEATURES:
        stem = f"{prefix}embedding_layer.embedding_layer.embedding_layers."
        if feature.share_embedding is not None:
            state[f"{stem}{feature.name}.weight"] = state[f"{stem}{feature.share_embedding}.weight"].clone()
    return state


def fuxictr_files(folder: Path, state: dict[str, torch.Tensor]) -> tuple[Path, Path]:
    specs = []
    for f in FEATURES:
        spec = {"type": f.kind} if f.kind == "numeric" else {"type": f.kind, "vocab_size": f.vocab_size, "padding_idx": 0}
        if f.kind == "sequence":
            spec |= {"share_embedding": f.share_embedding, "max_len": f.max_len}
        specs.append({f.name: spec})
    (folder / "feature_map.json").write_text(json.dumps({"features": specs}))
    torch.save(state, folder / "net.model")
    return folder / "net.model", folder / "feature_map.json"


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_model_loads_bit_for_bit(name: str, tmp_path: Path):
    model = trained(name)
    checkpoint.save(model, tmp_path / "m.safetensors")
    loaded = checkpoint.load(tmp_path / "m.safetensors")
    assert loaded.config == model.config and loaded.feature_map == model.feature_map
    assert bool(loaded.hidden_mean_known) and torch.equal(loaded.hidden_mean, model.hidden_mean)
    drawn = columns(8)
    assert torch.equal(loaded(drawn).logit_B, model(drawn).logit_B)
    header = read_model(tmp_path / "m.safetensors")
    assert header.model_id == checkpoint.model_id(loaded) == checkpoint.model_id(model)
    assert (header.config, header.feature_map) == (model.config, model.feature_map)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_model_id_tells_models_apart():
    ids = {
        checkpoint.model_id(trained()),
        checkpoint.model_id(trained(seed=2)),
        checkpoint.model_id(trained("dcnv2_stacked")),
        checkpoint.model_id(build_model(CONFIGS["dcnv2"], FEATURES, seed=1)),  # its hidden mean is not known
    }
    assert len(ids) == 4 and all(len(found) == 12 for found in ids)
    assert checkpoint.model_id(trained()) == checkpoint.model_id(trained())


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_official_files_load(prefix: str, tmp_path: Path):
    for name in ("dcnv2", "dcnv2_batch_norm", "deepfm", "din", "fibinet", "sdim"):
        model = trained(name)
        files = fuxictr_files(tmp_path, official(model, prefix))
        loaded = checkpoint.load_official(*files, model.config)
        drawn = columns(8)
        assert torch.equal(loaded(drawn).logit_B, model(drawn).logit_B)
        assert not loaded.training and not bool(loaded.hidden_mean_known)


def test_settings_of_the_experiment_are_enough(tmp_path: Path):
    params = {
        "model": "DCNv2",
        "embedding_dim": 4,
        "parallel_dnn_hidden_units": [12, 8],
        "num_cross_layers": 2,
        "model_structure": "parallel",
    }
    loaded = checkpoint.load_official(*fuxictr_files(tmp_path, official(trained())), params)
    assert loaded.config == CONFIGS["dcnv2"]


def refused_official(tmp_path: Path, state: dict[str, torch.Tensor], message: str, config=CONFIGS["dcnv2"]) -> None:
    with pytest.raises(CheckpointMismatch, match=message):
        checkpoint.load_official(*fuxictr_files(tmp_path, state), config)


def test_shared_tables_that_differ_are_refused(tmp_path: Path):
    state = official(trained())
    state["embedding_layer.embedding_layer.embedding_layers.cate_history.weight"][3] += 1
    refused_official(tmp_path, state, "cate_history.weight and .*cate_id.weight differ")


def test_official_parameters_must_fit_exactly(tmp_path: Path):
    state = official(trained())
    without = {name: tensor for name, tensor in state.items() if name != "fc.weight"}
    refused_official(tmp_path, without, r"no parameter fc.weight of shape \(1, 32\); there is nothing of that name")
    wide = state | {"fc.weight": torch.zeros(1, 40)}
    refused_official(tmp_path, wide, r"there is fc.weight \(1, 40\)")
    refused_official(tmp_path, state | {"gate.weight": torch.zeros(2)}, "1 parameters have no place in dcnv2 .*gate.weight")
    twice = {f"{prefix}.{name}": tensor for prefix in ("a", "b") for name, tensor in state.items()}
    refused_official(tmp_path, twice, "could be any of a.* b")
    refused_official(tmp_path, state | {"fc.bias": torch.tensor([torch.nan])}, "1 parameters hold NaN or infinity: fc.bias")
    refused_official(tmp_path, state, "no parameter", CONFIGS["deepfm"])


def test_code_in_a_pickle_is_not_executed(tmp_path: Path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    file, features = fuxictr_files(tmp_path, official(trained()))
    torch.save({"x": Payload()}, file)
    with pytest.raises(CheckpointMismatch, match="nothing of it was executed"):
        checkpoint.load_official(file, features, CONFIGS["dcnv2"])
    assert not (tmp_path / "executed").exists()


def test_files_that_are_not_ours_are_refused(tmp_path: Path):
    file = tmp_path / "m.safetensors"
    with pytest.raises(CheckpointMismatch, match="cannot be read"):
        checkpoint.load(file)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointMismatch, match="convert a FuxiCTR checkpoint first"):
        checkpoint.load(file)
    safetensors.torch.save_file({"a": torch.zeros(1)}, file, {"streambank.model": "mamba", "streambank.format": "1"})
    with pytest.raises(CheckpointMismatch, match="holds a 'mamba' model"):
        checkpoint.load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, meta: meta.update({"streambank.format": "9"}), "has format '9'"),
        (lambda tensors, meta: meta.update({"config": "{"}), "its header cannot be used"),
        (lambda tensors, meta: meta.update({"config": '{"network": "gru4rec"}'}), "network 'gru4rec' is not known"),
        (lambda tensors, meta: meta.pop("feature_map"), "its header cannot be used"),
        (lambda tensors, meta: tensors.pop("fc.weight"), "parameters missing: fc.weight"),
        (lambda tensors, meta: tensors.update({"fc.weight": torch.zeros(1, 3)}), r"fc.weight is \[1, 3\], not \[1, 32\]"),
        (lambda tensors, meta: tensors.update({"fc.bias": torch.tensor([torch.inf])}), "NaN or infinity: fc.bias"),
    ],
)
def test_damaged_files_of_ours_are_refused(tmp_path: Path, change, message: str):
    file = tmp_path / "m.safetensors"
    checkpoint.save(trained(), file)
    with safetensors.safe_open(file, framework="pt") as handle:
        tensors, metadata = {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata()  # noqa: SIM118
    change(tensors, metadata)
    safetensors.torch.save_file(tensors, file, metadata)
    with pytest.raises(CheckpointMismatch, match=message):
        checkpoint.load(file)
    if "infinity" not in message:  # values are not read with the header
        with pytest.raises(CheckpointMismatch, match=message):
            read_model(file)


def test_a_feature_map_that_the_network_does_not_take_is_refused(tmp_path: Path):
    file, _ = fuxictr_files(tmp_path, official(trained("din")))
    with pytest.raises(CheckpointMismatch, match="give no network: 'item_history' is no sequence feature"):
        checkpoint.load_official(file, FeatureMap(FEATURES.features[:4]), CONFIGS["din"])
