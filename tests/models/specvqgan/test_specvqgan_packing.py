"""Packed linear layers give what linear layers give, for any number of rows, and leave other layers alone."""

import pytest
import torch
from torch import nn

from models.specvqgan.config import TransformerConfig
from models.specvqgan.packing import PackedLinear, pack_linears
from models.specvqgan.transformer import SoundTransformer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@torch.inference_mode()
def test_a_packed_layer_is_the_layer(bias: bool, packed: bool) -> None:
    linear = nn.Linear(24, 40, bias=bias)
    layer = PackedLinear(linear)
    if not packed:
        layer._packed = None
    for shape in ((24,), (1, 1, 24), (2, 24), (3, 1, 24), (5, 7, 24)):
        x = torch.randn(shape)
        torch.testing.assert_close(layer(x), linear(x), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_packed_transformer_says_the_same_and_a_double_one_is_left_alone() -> None:
    torch.manual_seed(0)
    network = SoundTransformer(
        TransformerConfig(codes=9, layers=2, heads=2, width=16, features=2, feature_width=5, columns=3)
    ).eval()
    feats, tokens = torch.randn(2, 5, 2), torch.randint(9, (2, 7))
    wanted = network(feats, tokens)
    network.pack()
    assert not any(isinstance(module, nn.Linear) for module in network.modules())
    torch.testing.assert_close(network(feats, tokens), wanted, atol=1e-5, rtol=1e-5)
    double = nn.Sequential(nn.Linear(3, 3).double())
    pack_linears(double)
    assert isinstance(double[0], nn.Linear)
