"""The short way through plain decoders against the library's own forward."""

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
