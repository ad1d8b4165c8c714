"""Compiled steps of answers give what the eager ones do: one graph per bucket of questions and of rows."""

from typing import Any

import pytest
import torch
from compilers import captured
from rekv_models import PREFIX, SMALL, YARN, encoded, features, seen, tiny_decoder
from torch import Tensor

from models.rekv.answering import Request, retrieve
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.generate import TokenQuestion, answer_questions, read_answers
from models.rekv.steps import CompiledSteps

WIDE = ReKVConfig(window_tokens=200, retrieve_frames=4)
PROMPTS = [torch.tensor(ids) for ids in ([31, 21, 22], [33, 34], [31, 21, 22, 23, 33])]
LIMIT = 7


def logits_of(decoder: TextDecoder, requests: list[Request], compiled: CompiledSteps | None) -> list[Tensor]:
    """Return the logits of every step."""
    steps: list[Tensor] = []
    context, _ = retrieve(decoder, WIDE, requests, 5 + LIMIT, compiled)
    read_answers(decoder, WIDE, context, PROMPTS[: len(requests)], [LIMIT] * len(requests), (), steps)
    assert (context.compiled is compiled) and len(steps) == LIMIT
    return steps


def requests_of(decoder: TextDecoder) -> list[Request]:
    """Return questions about films of several lengths; one is given frames, so that its context is shorter."""
    views = [seen(encoded(decoder, WIDE, features(frames, seed))) for frames, seed in ((16, 2), (9, 3), (3, 4))]
    ids = torch.tensor([21, 22, 23])
    return [Request(views[0], ids), Request(views[1], ids, torch.tensor([1, 4])), Request(views[2], ids + 1)]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        pytest.param("Qwen2", {}, marks=pytest.mark.heavy),
        pytest.param("Qwen3", {}, marks=pytest.mark.slow),
        pytest.param("Llama", {"rope_parameters": YARN}, marks=pytest.mark.slow),
    ],
)
def test_logits_of_every_step_are_those_of_the_eager_steps(
    family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = captured(monkeypatch)
    decoder = tiny_decoder(WIDE, family, **settings)
    requests = requests_of(decoder)
    compiled = CompiledSteps(decoder, WIDE)
    for some in (requests, requests[::-1], requests[1:2]):  # the second in the buffers of the first
        torch.testing.assert_close(logits_of(decoder, some, compiled), logits_of(decoder, some, None), atol=2e-5, rtol=1e-4)
    assert found.graphs == 2 and found.calls == [2 * (LIMIT - 1), LIMIT - 1]


@pytest.mark.slow
def test_compiled_code_gives_them_too() -> None:
    decoder = tiny_decoder(WIDE)
    requests = requests_of(decoder)
    compiled = CompiledSteps(decoder, WIDE)
    for some in (requests, requests[::-1]):
        torch.testing.assert_close(logits_of(decoder, some, compiled), logits_of(decoder, some, None), atol=2e-5, rtol=1e-4)


@pytest.mark.heavy
def test_text_that_may_outgrow_the_window_is_read_by_eager_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    found = captured(monkeypatch)
    decoder = tiny_decoder(SMALL)
    view = seen(encoded(decoder, SMALL, features(16)))
    room = SMALL.window_tokens - len(PREFIX) - 4 * 6
    answers = []
    for limit in (room - 2, room - 1):
        asked = TokenQuestion(stream=view, question_ids_n=PROMPTS[0], prompt_ids_n=PROMPTS[1], max_new_tokens=limit)
        answers.append([answer_questions(decoder, SMALL, [asked], (), CompiledSteps(decoder, SMALL))[0]])
        answers[-1] += answer_questions(decoder, SMALL, [asked], ())
    assert found.calls == [room - 3]
    assert all(compiled.tokens == eager.tokens for compiled, eager in answers)
