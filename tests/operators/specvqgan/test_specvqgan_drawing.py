"""Drawing tokens for several streams together, one of which fails."""

import pytest
import torch

from models.specvqgan.config import TransformerConfig
from models.specvqgan.transformer import SoundTransformer
from operators.specvqgan.drawing import Drawing, Turn
from operators.specvqgan.streams import FrameStream

CPU = torch.device("cpu")


@pytest.fixture
def drawing() -> Drawing:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = TransformerConfig(codes=11, layers=2, heads=2, width=16, features=2, feature_width=6, columns=4)
        network = SoundTransformer(config).eval().requires_grad_(False)
    return Drawing(network, slots=2, columns=4, temperature=1.0, top_k=5, batch=2, device=CPU)


def opened(drawing: Drawing, slot: int) -> FrameStream:
    stream = FrameStream(slot=slot, seed=slot + 1)
    drawing.open(slot, stream.seed)
    return stream


def test_a_stream_that_failed_begins_anew_beside_one_that_is_further_on(drawing: Drawing) -> None:
    feats_EF = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    other, failing = opened(drawing, 0), opened(drawing, 1)
    for column in range(2):
        assert drawing.draw([Turn(one, 0, None if column else feats_EF) for one in (other, failing)]) == [True, True]
    drawing.forget(1)
    assert drawing.draw([Turn(other, 0, None), Turn(failing, 0, feats_EF * torch.nan)]) == [True, False]
    again = opened(drawing, 1)
    assert drawing.draw([Turn(other, 0, None), Turn(again, 0, feats_EF)]) == [True, True]
    together = drawing.last(again, 1).tolist()
    alone = opened(drawing, 1)
    assert drawing.draw([Turn(alone, 0, feats_EF)]) == [True] and drawing.last(alone, 1).tolist() == together
