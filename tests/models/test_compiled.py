"""A compiled network returns what the network returns; batches are padded to few sizes."""

import pytest
import torch
from torch import Tensor

from models import compiled
from models.mamba.config import MambaConfig
from models.mamba.model import Mamba


def test_batches_are_computed_in_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def network(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x * 2

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    run = compiled.bucketed(network, torch.device("cpu"))
    for rows in (1, 2, 3, 5, 8):
        x = torch.randn(rows, 4)
        assert torch.equal(run(x), 2 * x)
    assert seen == [1, 2, 4, 8, 8]


@pytest.mark.slow
def test_the_compiled_backbone_of_the_detector_returns_what_the_eager_one_does() -> None:
    torch.manual_seed(3)
    small = MambaConfig(backbone="conv5", channels=(8, 8, 16, 16, 16), neck_channels=16, fc_channels=32, heads=4)
    model = Mamba(small).fuse_for_inference()
    run = compiled.bucketed(model.encode, torch.device("cpu"))
    with torch.inference_mode():
        for rows in (1, 3):
            pixels = torch.randn(rows, 3, 64, 80).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(run(pixels), model.encode(pixels), atol=1e-4, rtol=1e-4)
