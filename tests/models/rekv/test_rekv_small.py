"""The small model: its file, its words, its training, and what its weights in the package can do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from connectors.errors import CheckpointMismatch, ConfigError
from models.rekv.film_quality import film_quality
from models.rekv.films import SIDE, make_film, questions
from models.rekv.films_recipe import FilmsSchedule, Progress, film_tokenizer
from models.rekv.loaders import load_model
from models.rekv.small import SMALL_REKV, WordTokenizer, build_small, load_small, save_small
from models.rekv.train import train

WEIGHTS = Path(__file__).resolve().parents[3] / "models" / "rekv" / "weights" / "shapes.safetensors"
SHORT = FilmsSchedule(
    variants=1, vision_steps=40, vision_batch=32, answer_steps=30, answer_batch=8, most_frames=8, unseen_films=1
)


def test_words_and_marks_become_tokens_and_words_again() -> None:
    tokenizer = WordTokenizer.of(["What colour was it?", "in the morning"])
    ids = tokenizer.encode("  what COLOUR was the morning?")
    assert tokenizer.decode(ids) == "what colour was the morning ?"
    assert tokenizer.decode([*ids[:2], tokenizer.end]) == "what colour"
    assert tokenizer.words[tokenizer.encode("zebra")[0]] == "<unknown>"
    assert tokenizer.encode("") == []


def test_every_word_of_questions_and_answers_is_known() -> None:
    tokenizer, rng = film_tokenizer(), np.random.default_rng(0)
    unknown = tokenizer.encode("zebra")[0]
    for seed in range(30):
        for one in questions(make_film(seed), rng):
            assert unknown not in tokenizer.encode(one.text) + tokenizer.encode(one.answer)
            assert tokenizer.decode(tokenizer.encode(one.answer)) == one.answer


def test_a_saved_model_comes_back_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        small = build_small(film_tokenizer(), SIDE)
    file = tmp_path / "small.safetensors"
    save_small(small, file)
    again = load_small(file)
    assert (again.tokenizer.words, again.prompts, again.rekv) == (small.tokenizer.words, small.prompts, small.rekv)
    for (name, a), (other, b) in zip(small.model.state_dict().items(), again.model.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b), name
    assert file.stat().st_size < 10_000_000
    model = load_model(file, SMALL_REKV)
    assert model.end_tokens == {small.tokenizer.end}
    assert model.prefix().tokens == len(small.tokenizer.encode(small.prompts.prefix))


def test_a_file_that_is_not_a_small_model_is_named_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, file)
    with pytest.raises(CheckpointMismatch, match="is not a small model of ReKV"):
        load_model(file, SMALL_REKV)
    save_small(build_small(film_tokenizer(), SIDE), file)
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(file)
    tensors.pop("model.language_model.norm.weight")
    save_file(tensors, file, metadata)
    with pytest.raises(CheckpointMismatch, match=r"tensors missing \['model.language_model.norm.weight'\]"):
        load_small(file)
    save_file(tensors, file, metadata | {"rekv": json.dumps({"window": 3})})
    with pytest.raises(CheckpointMismatch, match="its header cannot be used"):
        load_small(file)


def test_a_short_training_lowers_both_losses_and_is_a_function_of_its_seed(tmp_path: Path) -> None:
    said: list[Progress] = []
    done = train(tmp_path / "a", recipe="shapes", seed=3, schedule=SHORT, progress=said.append)
    for stage in ("vision", "answers"):
        losses = [p.loss for p in said if p.stage == stage]
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    record = json.loads((tmp_path / "a" / "training.json").read_text())
    assert record["metrics"] == done.metrics
    assert done.metrics["questions"] == 20
    first, again = (
        load_file(file) for file in (done.weights, train(tmp_path / "b", recipe="shapes", seed=3, schedule=SHORT).weights)
    )
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())


def test_training_needs_a_recipe_that_exists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to learn from"):
        train(tmp_path)
    with pytest.raises(ConfigError, match=r"no recipe 'shape' .*'shapes'"):
        train(tmp_path, recipe="shape")


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no weights in the package")
def test_the_weights_in_the_package_find_events_in_unseen_films_and_answer_from_them() -> None:
    quality = film_quality(load_model(WEIGHTS, SMALL_REKV), SMALL_REKV, [make_film(seed) for seed in (70, 71, 72)])
    assert quality.questions == 60
    assert quality.recall >= 0.9
    assert quality.accuracy["memory"] >= quality.accuracy["uniform"] + 0.2
    assert quality.accuracy["memory"] >= quality.accuracy["recent"] + 0.2
