"""The short way through plain decoders against the library's own forward."""

from types import SimpleNamespace

import pytest
import torch
from rekv_models import SMALL, YARN, encoded, features, seen, tiny_decoder

from models.rekv import decoder as decoders
from models.rekv.generate import TokenQuestion, answer_questions


@pytest.mark.parametrize(
    ("family", "settings"),
    [("Qwen2", {}), ("Qwen3", {}), ("Llama", {}), ("Mistral", {}), ("Llama", {"rope_parameters": YARN})],
)
def test_plain_decoders_give_the_bits_of_the_library(
    family: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for names in (decoders._PLAIN, ()):
        monkeypatch.setattr(decoders, "_PLAIN", names)
        decoder = tiny_decoder(family=family, **settings)
        assert not names or type(decoder.module).__name__ in names
        stream = encoded(decoder, SMALL, features(9))
        question = TokenQuestion(
            stream=seen(stream),
            question_ids_n=torch.tensor([21, 22, 23]),
            prompt_ids_n=torch.tensor([31, 21, 22, 23]),
            max_new_tokens=6,
        )
        answer = answer_questions(decoder, SMALL, [question], set())[0]
        results.append((stream.window.keys_LGCD, answer))
    (keys, short), (wanted_keys, long) = results
    assert torch.equal(keys, wanted_keys)
    assert short.tokens == long.tokens
    assert all(torch.equal(a, b) for a, b in zip(short.scores, long.scores, strict=True))


def test_the_norm_of_one_row_is_that_of_the_library() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = SimpleNamespace(weight=torch.rand(96, generator=generator) + 0.5, variance_epsilon=1e-6)
    for size in (1e-6, 1.0, 1e4):
        x = torch.randn(1, 96, generator=generator) * size
        wanted = torch.nn.functional.rms_norm(x, (96,), norm.weight, 1e-6)
        with torch.inference_mode():
            torch.testing.assert_close(decoders._normalized(norm, x), wanted, atol=1e-6, rtol=1e-5)
        x.requires_grad_()
        decoders._normalized(norm, x).sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()
