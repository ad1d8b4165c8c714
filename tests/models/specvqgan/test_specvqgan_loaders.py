"""A model is a folder with one file per network: what is found there, what does not go together, features of frames."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sound_models import write_model

from connectors.errors import CheckpointMismatch, ConfigError
from models.specvqgan.checkpoint import load_features, load_own_transformer, save
from models.specvqgan.config import TransformerConfig
from models.specvqgan.loaders import load_networks
from models.specvqgan.parts import PARTS, find_parts
from models.specvqgan.transformer import SoundTransformer
from models.specvqgan.vision import FrameFeatures, PixelConfig, PixelFeatures

OFFICIAL = Path(__file__).resolve().parents[2] / "golden" / "specvqgan" / "net2net_tiny.safetensors"


def test_a_folder_gives_the_networks_that_are_asked_for(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    networks = load_networks(folder, PARTS)
    assert networks.transformer is not None and networks.features is not None
    assert networks.features.width == networks.transformer.config.feature_width
    some = load_networks(folder, ["autoencoder"])
    assert some.autoencoder is not None and some.transformer is None and some.vocoder is None


def test_an_official_transformer_brings_its_codebook(tmp_path: Path) -> None:
    shutil.copy(OFFICIAL, tmp_path / "transformer.safetensors")
    networks = load_networks(tmp_path, ["autoencoder", "transformer"])
    assert networks.autoencoder is not None and networks.transformer is not None
    assert networks.autoencoder.config.codes == networks.transformer.config.codes
    assert load_networks(tmp_path, ["autoencoder"]).autoencoder is not None


def test_what_is_missing_or_does_not_go_together_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(write_model(tmp_path / "whole"), tmp_path / "other")
    with pytest.raises(CheckpointMismatch, match="is no folder; give one with autoencoder, transformer"):
        find_parts(tmp_path / "nowhere", PARTS)
    (folder / "vocoder.safetensors").rename(folder / "voice.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"has no vocoder .* it holds autoencoder\.safetensors, features"):
        find_parts(folder, PARTS)
    shutil.copy(folder / "features.safetensors", folder / "features.pth")
    with pytest.raises(CheckpointMismatch, match=r"holds features\.safetensors and features\.pth"):
        find_parts(folder, ["features"])
    (folder / "features.pth").unlink()
    wide = TransformerConfig(codes=16, layers=1, heads=1, width=8, features=2, feature_width=7, columns=4)
    save(SoundTransformer(wide), folder / "transformer.safetensors")
    with pytest.raises(CheckpointMismatch, match="features are 12 wide, the transformer takes 7"):
        load_networks(folder, ["features", "transformer"])
    save(SoundTransformer(TransformerConfig(codes=9, layers=1, heads=1, width=8)), folder / "transformer.safetensors")
    with pytest.raises(CheckpointMismatch, match="makes 9 kinds of tokens, the codebook has 16"):
        load_networks(folder, ["autoencoder", "transformer"])
    (folder / "autoencoder.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match="has no autoencoder"):
        load_networks(folder, ["autoencoder", "transformer"])
    assert load_own_transformer(folder / "transformer.safetensors").config.codes == 9


def test_colors_of_a_frame_are_averaged_over_a_grid_and_standardized(tmp_path: Path) -> None:
    network = PixelFeatures(PixelConfig(side=2))
    network.mean.fill_(0.5)
    network.std.fill_(0.25)
    save(network, tmp_path / "features.safetensors")
    loaded = load_features(tmp_path / "features.safetensors")
    frame = np.zeros((6, 8, 3), np.uint8)
    frame[:3, 4:, 1] = 255  # green, top right
    feats_E = loaded(loaded.pixels(torch.from_numpy(frame))[None])[0]
    wanted = torch.full((3, 2, 2), -2.0)
    wanted[1, 0, 1] = 2.0
    torch.testing.assert_close(feats_E.view(3, 2, 2), wanted)
    with pytest.raises(ConfigError, match="side is 0"):
        PixelConfig(side=0)


@pytest.mark.heavy
def test_features_of_torchvision_load_and_others_are_refused(tmp_path: Path) -> None:
    network = FrameFeatures()
    torch.save(network.net.state_dict() | {"fc.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, tmp_path / "resnet.pth")
    loaded = load_features(tmp_path / "resnet.pth")
    assert loaded.width == 2048
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in network.state_dict().items())
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointMismatch, match="is no ResNet-50 of torchvision"):
        load_features(tmp_path / "resnet.pth")
