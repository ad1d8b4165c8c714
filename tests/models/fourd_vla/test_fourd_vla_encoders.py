"""Encoders that frames are compared by: classifiers of torchvision from their own files, refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from connectors.errors import CheckpointMismatch, ConfigError
from models.fourd_vla.encoders import TorchvisionEncoder

models = pytest.importorskip("torchvision.models")

NAME, CLASSES, SIDE = "shufflenet_v2_x0_5", 7, 64


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    torch.manual_seed(4)
    model = models.get_model(NAME, weights=None, num_classes=CLASSES).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def files(classifier: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("classifier")
    torch.save(classifier.state_dict(), folder / "classifier.pth")
    save_file(
        {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, folder / "classifier.safetensors"
    )
    return sorted(folder.iterdir())


def test_the_feature_of_a_torchvision_classifier_is_what_its_last_layer_gets(
    classifier: torch.nn.Module, files: list[Path]
) -> None:
    rgb = torch.randint(256, (3, 48, 96, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scaled = torch.nn.functional.interpolate(rgb.permute(0, 3, 1, 2).float(), (SIDE, SIDE), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen: list[torch.Tensor] = []
    hook = classifier.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        classifier((scaled / 255 - mean) / std)
        hook.remove()
        for file in files:
            encoder = TorchvisionEncoder(NAME, str(file), SIDE).eval()
            feature = encoder(rgb)
            assert feature.shape == (3, encoder.size)
            torch.testing.assert_close(feature, seen[0], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(seen[0][0], seen[0][1])


def test_a_classifier_that_does_not_fit_is_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no model 'shufflenet_v2_x05'.*shufflenet_v2_x0_5"):
        TorchvisionEncoder("shufflenet_v2_x05", str(files[0]), SIDE)
    with pytest.raises(CheckpointMismatch, match="does not fit torchvision's squeezenet1_1"):
        TorchvisionEncoder("squeezenet1_1", str(files[0]), SIDE)
