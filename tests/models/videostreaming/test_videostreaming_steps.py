"""Compiled steps of answers give what the eager ones do: one graph per bucket of questions and of text."""

import pytest
import torch
from compilers import captured
from torch import Tensor
from videostreaming_models import encoded, features, ids, tiny_model

from models.videostreaming.answering import Prompt, Shown, answer_prompts
from models.videostreaming.model import VideoStreamingModel
from models.videostreaming.steps import CompiledSteps

LIMIT = 6


def logits_of(model: VideoStreamingModel, prompts: list[Prompt], compiled: CompiledSteps | None) -> list[Tensor]:
    """Return the logits of every step."""
    steps: list[Tensor] = []
    answer_prompts(model, prompts, [LIMIT] * len(prompts), (), steps, compiled)
    assert len(steps) == LIMIT
    return steps


def prompts_of(model: VideoStreamingModel) -> list[Prompt]:
    """Return prompts of several lengths."""
    memories = [clip.memory_MD for clip in encoded(model, features(3))]
    shown = [Shown(ids(3, seed), memory_MD) for seed, memory_MD in enumerate(memories)]
    return [Prompt(ids(4), shown[:count], ids(5 + count, seed=count)) for count in (1, 2, 3)]


def check(compiled: CompiledSteps, model: VideoStreamingModel) -> None:
    prompts = prompts_of(model)
    for some in (prompts, prompts[::-1], [prompts[2]] * 3):  # all in the same cache; the last without padding
        torch.testing.assert_close(logits_of(model, some, compiled), logits_of(model, some, None), atol=2e-5, rtol=1e-4)


@pytest.mark.heavy
@torch.inference_mode()
def test_logits_of_every_step_are_those_of_the_eager_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    found = captured(monkeypatch)
    model = tiny_model()
    check(CompiledSteps(model.language_model), model)
    assert found.graphs == 1 and found.calls == [3 * (LIMIT - 1)]


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_code_gives_them_too() -> None:
    model = tiny_model()
    check(CompiledSteps(model.language_model), model)


def test_models_with_windows_or_graphs_in_pieces_are_not_compiled() -> None:
    model = tiny_model().language_model
    assert CompiledSteps.fit(model)
    model.config.sliding_window = 64
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert not CompiledSteps.fit(model)
