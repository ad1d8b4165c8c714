"""Selection: ties, brute force, the Gumbel top-k and its gradient, the loss of temporal supervision, a constant budget."""

import pytest
import torch
from videostreaming_models import CONFIG, encoded, features, ids, tiny_model

from models.videostreaming.answering import Prompt, Shown, answer_prompts, prompt_embeds
from models.videostreaming.selection import (
    gumbel_noise,
    gumbel_top,
    selection_loss,
    similarities,
    stored_indicator,
    top_clips,
)

SCORES = torch.tensor([[0.3, -0.2, 0.8, 0.1, 0.79]])


def test_of_equal_clips_the_newer_is_selected() -> None:
    assert top_clips(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2).tolist() == [1, 3]
    assert top_clips(torch.tensor([0.5, 0.5]), 4).tolist() == [0, 1]
    assert top_clips(torch.tensor([0.5, -torch.inf, 0.4]), 3).tolist() == [0, 2]


def test_selection_is_that_of_a_loop_over_all_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    for clips in (1, 3, 50):
        stored = stored_indicator(torch.randn(clips, 8, generator=generator).half().float(), "cosine")
        asked = torch.randn(8, generator=generator)
        cosines = [float(asked @ row) / float(asked.norm()) for row in stored]
        wanted = sorted(sorted(range(clips), key=lambda k: (-cosines[k], -k))[:4])
        assert top_clips(similarities(asked, stored), 4).tolist() == wanted


def test_without_noise_the_hard_selection_is_the_best_clips() -> None:
    chosen, _ = gumbel_top(SCORES, 2)
    torch.testing.assert_close(chosen, torch.tensor([[0.0, 0.0, 1.0, 0.0, 1.0]]))


@pytest.mark.parametrize("temperature", [1.0, 1e-3, 1e-30])
def test_exactly_so_many_clips_are_selected_at_any_temperature(temperature: float) -> None:
    noise = gumbel_noise((200, 5), torch.Generator().manual_seed(1))
    chosen, soft = gumbel_top(SCORES.expand(200, 5), 2, noise_BK=noise, temperature=temperature)
    assert soft.isfinite().all() and chosen.isfinite().all()
    torch.testing.assert_close(chosen.sum(dim=1), torch.full((200,), 2.0))
    assert ((chosen - chosen.round()).abs() < 1e-5).all()


def test_clips_of_higher_similarity_are_selected_more_often() -> None:
    noise = gumbel_noise((4000, 5), torch.Generator().manual_seed(2))
    chosen, _ = gumbel_top(SCORES.expand(4000, 5), 2, noise_BK=noise, scale=3.0)
    often = chosen.mean(dim=0)
    assert often[2] > often[0] > often[1] and often[4] > often[3] > often[1]


def test_the_gradient_of_the_selection_is_that_of_its_soft_form_and_sums_to_nothing() -> None:
    scores = SCORES.clone().requires_grad_()
    chosen, _ = gumbel_top(scores, 2, temperature=0.5, scale=2.0)
    (chosen * torch.arange(5.0)).sum().backward()
    assert scores.grad is not None and scores.grad.abs().max() > 1e-3
    assert float(scores.grad.sum()) == pytest.approx(0, abs=1e-6)


def test_the_selection_loss_is_zero_at_its_target_and_pulls_the_relevant_clip_up() -> None:
    relevant = torch.tensor([[True, False, True]])
    target = torch.tensor([[0.0, -1e4, 0.0]])
    assert float(selection_loss(target, relevant)) == pytest.approx(0, abs=1e-6)
    scores = torch.zeros(1, 3, requires_grad=True)
    selection_loss(scores, torch.tensor([[False, True, False]])).sum().backward()
    assert scores.grad is not None and scores.grad[0, 1] < 0 < scores.grad[0, 0]
    assert float(selection_loss(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))) == 0


@pytest.mark.heavy
@pytest.mark.parametrize("clips", [2, 4, 20])
def test_the_answering_model_reads_equally_much_of_a_video_of_any_length(clips: int) -> None:
    model = tiny_model()
    memories = [one.memory_MD for one in encoded(model, features(clips))]
    shown = [Shown(ids(0), memory) for memory in memories[: CONFIG.select_clips]]
    embeds = prompt_embeds(model, Prompt(ids(2), shown, ids(3)))
    assert len(embeds) == 2 + CONFIG.video_tokens + 3


def test_questions_of_different_lengths_are_answered_together_as_alone() -> None:
    model = tiny_model()
    memories = [one.memory_MD for one in encoded(model, features(3))]
    prompts = [
        Prompt(ids(2), [Shown(ids(2), memories[0])], ids(9)),
        Prompt(ids(2), [Shown(ids(2), memory) for memory in memories], ids(1)),
        Prompt(ids(2), [], ids(4)),
    ]
    tokens, confidences = answer_prompts(model, prompts, [6, 3, 5], {3})
    for row, prompt in enumerate(prompts):
        alone, sure = answer_prompts(model, [prompt], [[6, 3, 5][row]], {3})
        assert alone[0] == tokens[row]
        assert sure[0] == pytest.approx(confidences[row], rel=1e-4)
