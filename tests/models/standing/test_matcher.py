"""The matcher of standing questions: it learns, and its file fits the model it was trained beside only."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch
from models.films import COLORS, SHAPES, Event
from models.rekv.header import SMALL_MATCHER, SMALL_WEIGHTS, read_small
from models.rekv.loaders import load_model
from models.rekv.recipe import film_tokenizer
from models.standing.header import MatcherConfig
from models.standing.matcher import FrameMatcher, encoder_name, load_matcher, save_matcher
from models.standing.recipe import About, MatcherSchedule, about_text, draw_about, run_matcher_recipe
from models.training import Training


def test_texts_are_of_words_that_the_films_know_and_name_what_they_are_about() -> None:
    rng, known = np.random.default_rng(0), film_tokenizer()
    for _ in range(500):
        about = draw_about(rng)
        text = about_text(about, rng)
        assert not known.unknown(text)
        assert all(word in text for word in (about.color, about.count, about.time) if word)
        others = (set(COLORS) - {about.color}) | (set(SHAPES) - {about.shape})
        assert not any(word in known._word.findall(text) for word in others)
    event = Event("ring", "red", "two", "at noon", 3, 9)
    assert About(shape="ring", count="two").holds(event) and not About(color="blue").holds(event)
    assert not About(shape="ring").holds(None)


@pytest.mark.heavy
def test_a_few_steps_learn_from_colors_alone(tmp_path: Path) -> None:
    """With an encoder that sees the mean color only, questions about colors can be learned, and those about shapes cannot."""
    tokenizer = film_tokenizer()
    words_VW = torch.randn(len(tokenizer.words), 32, generator=torch.Generator().manual_seed(1))

    def frames(pixels_FHW3: Tensor) -> Tensor:
        return (pixels_FHW3.float() / 255).flatten(1, 2).std(dim=1, keepdim=True)

    training = Training(tmp_path)
    schedule = MatcherSchedule(variants=1, texts=400, steps=150, batch=64, unseen_films=1)
    words = {"words": lambda text: words_VW[torch.tensor(tokenizer.encode(text))], "words_VW": words_VW}
    result = run_matcher_recipe(training, "rekv", 0, frames=frames, schedule=schedule, **words)
    assert result.metrics["frames_wrong"] < 0.2
    again = load_matcher(result.weights, encoders=encoder_name(words_VW))
    with pytest.raises(CheckpointMismatch, match="was trained beside the model"):
        load_matcher(result.weights, encoders=encoder_name(words_VW + 1))
    assert again.config == MatcherConfig(frame_width=3, word_width=32)


def test_the_file_of_the_package_belongs_to_its_small_model(tmp_path: Path) -> None:
    model = load_model(SMALL_WEIGHTS, read_small(SMALL_WEIGHTS)[0])
    table = model.decoder.module.get_input_embeddings().weight.detach()  # type: ignore[operator, union-attr]
    matcher = load_matcher(SMALL_MATCHER, encoders=encoder_name(table))
    other = FrameMatcher(MatcherConfig(frame_width=4, word_width=4))
    save_matcher(other, tmp_path / "other.safetensors", encoders="x")
    assert matcher.config.frame_width == 384
    (tmp_path / "cut.safetensors").write_bytes(SMALL_MATCHER.read_bytes()[:5000])
    with pytest.raises(CheckpointMismatch, match="not a complete safetensors file"):
        load_matcher(tmp_path / "cut.safetensors", encoders="x")
