"""Weights that are laid out for inference give the numbers of the modules; one question's tokens on a CPU, too."""

from typing import Any

import pytest
import torch
from rekv_models import YARN, encoded, features, seen, tiny_decoder
from torch import Tensor

from models.rekv.answering import Request, reading, retrieve
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.generate import read_answers
from models.rekv.layers import LooseLayer
from models.rekv.one_row import OneRow

WIDE = ReKVConfig(window_tokens=200, retrieve_frames=4)
PROMPT, LIMIT = torch.tensor([31, 21, 22]), 9
FAMILIES = [("Qwen2", {}), ("Llama", {}), ("Mistral", {}), ("Qwen3", {}), ("Llama", {"rope_parameters": YARN})]
CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


def logits_of(decoder: TextDecoder, questions: int = 1) -> list[Tensor]:
    """Return the logits of every step, the same questions together."""
    views = [seen(encoded(decoder, WIDE, features(frames, seed))) for frames, seed in ((16, 2), (3, 4))][:questions]
    steps: list[Tensor] = []
    context, _ = retrieve(decoder, WIDE, [Request(view, torch.tensor([21, 22, 23])) for view in views], len(PROMPT) + LIMIT)
    read_answers(decoder, WIDE, context, [PROMPT] * questions, [LIMIT] * questions, (), steps)
    assert len(steps) == LIMIT
    return steps


@pytest.mark.parametrize(("family", "settings"), FAMILIES)
def test_packed_layers_give_the_logits_of_their_modules(family: str, settings: dict[str, Any]) -> None:
    loose, packed = tiny_decoder(WIDE, family, **settings), tiny_decoder(WIDE, family, **settings)
    before = {name: value.clone() for name, value in packed.module.state_dict().items()}
    packed.pack()
    assert packed.packs and all(layer.holds() for layer in packed.packs)
    assert all(torch.equal(value, before[name]) for name, value in packed.module.state_dict().items())
    for questions in (1, 2):
        torch.testing.assert_close(logits_of(packed, questions), logits_of(loose, questions), **CLOSE)


def test_tokens_of_one_question_on_a_cpu_are_read_row_by_row() -> None:
    for (family, settings), fits in zip(FAMILIES, (True, True, True, False, False), strict=True):
        decoder = tiny_decoder(WIDE, family, **settings)
        assert not OneRow.fits(decoder)
        decoder.pack()
        assert OneRow.fits(decoder) == fits
    decoder = tiny_decoder(WIDE)
    decoder.pack()
    requests = [Request(seen(encoded(decoder, WIDE, features(9))), PROMPT)] * 2
    for count, config, kind in ((1, WIDE, True), (2, WIDE, False), (1, ReKVConfig(window_tokens=40, retrieve_frames=4), False)):
        context, _ = retrieve(decoder, config, requests[:count], 12)
        assert isinstance(reading(decoder, config, context), OneRow) == kind


def test_weights_that_are_changed_in_place_or_moved_count() -> None:
    decoder, other = tiny_decoder(WIDE), tiny_decoder(WIDE, seed=3)
    decoder.pack()
    decoder.module.load_state_dict(other.module.state_dict())
    decoder.head.load_state_dict(other.head.state_dict())
    assert OneRow.fits(decoder)
    torch.testing.assert_close(logits_of(decoder), logits_of(other), **CLOSE)
    decoder.module.to(torch.float64).to(torch.float32)
    assert not OneRow.fits(decoder)
    decoder.module.layers[0].self_attn.q_proj.weight.data.mul_(0.5)
    other.module.layers[0].self_attn.q_proj.weight.data.mul_(0.5)
    torch.testing.assert_close(logits_of(decoder), logits_of(other), **CLOSE)


def test_layers_of_other_linear_modules_stay_as_they_are() -> None:
    decoder, other = tiny_decoder(WIDE), tiny_decoder(WIDE)

    class Own(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for one in (decoder, other):
        projection = one.module.layers[1].mlp.up_proj
        projection.__class__ = Own
    decoder.pack()
    assert [type(layer) is LooseLayer for layer in decoder.packs] == [False, True, False]
    torch.testing.assert_close(logits_of(decoder), logits_of(other), **CLOSE)
