"""The small model: its file, its words, its training, and what its weights in the package can do."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import cases, read_json
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.rekv_memory_gain import bank_blocks
from connectors.errors import CheckpointMismatch, ConfigError
from models.film_training import render_pool
from models.films import COLORS, COUNTS, SHAPES, SIDE, TIMES, make_film, questions
from models.rekv.encoding import encode_prefix
from models.rekv.evaluate import film_quality
from models.rekv.header import SMALL_REKV
from models.rekv.loaders import load_model
from models.rekv.recipe import FilmsSchedule, _clip, film_tokenizer
from models.rekv.small import SMALL_PROMPTS, build_small, load_small, save_small
from models.rekv.train import Progress, train
from models.tokenizers import WordTokenizer

WEIGHTS = Path(__file__).resolve().parents[3] / "models" / "rekv" / "weights" / "shapes.safetensors"
SHORT = FilmsSchedule(
    variants=1, vision_steps=30, vision_batch=16, answer_steps=20, answer_batch=4, most_frames=6, unseen_films=1
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
    with pytest.raises(CheckpointMismatch, match="holds no model of Streambank, not 'rekv'"):
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


@pytest.mark.training
@pytest.mark.slow
def test_a_short_training_lowers_both_losses_and_is_a_function_of_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Progress] = []
    monkeypatch.setattr("models.rekv.recipe.make_film", lambda seed: make_film(seed, length=90))
    done = train(tmp_path / "a", recipe="shapes", seed=3, schedule=SHORT, progress=said.append)
    for stage in ("vision", "answers"):
        losses = [p.loss for p in said if p.stage == stage]
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    record = json.loads((tmp_path / "a" / "training.json").read_text())
    assert record["metrics"] == done.metrics
    assert done.metrics["questions"] == 20
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))  # one if it was more, two if it was one
        torch.manual_seed(8)  # the caller's own generator plays no part
        again = train(tmp_path / "b", recipe="shapes", seed=3, schedule=SHORT)
    finally:
        torch.set_num_threads(threads)
    first, second = load_file(done.weights), load_file(again.weights)  # of the header, the order of entries varies
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_training_needs_a_recipe_that_exists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to learn from"):
        train(tmp_path)
    with pytest.raises(ConfigError, match=r"no recipe 'shape' .*'shapes'"):
        train(tmp_path, recipe="shape")


def test_a_clip_shows_what_is_asked_about_and_nothing_else_of_that_shape_or_color() -> None:
    rng = np.random.default_rng(4)
    pool = render_pool(SHORT.variants, rng)
    colors, times = list(COLORS), list(TIMES)
    for number in range(400):
        gathered = bool(number % 2)
        clip = _clip(pool, 4 + number % 13, rng, gathered=gathered)
        shown = {name: labels[clip.rows_F].tolist() for name, labels in pool.labels.items()}
        holds = clip.holds_F.tolist()
        assert any(holds)
        words = set()
        for i, inside in enumerate(holds):
            shape, color = shown["shape"][i], shown["color"][i]
            if inside:
                names = (SHAPES[shape - 1], colors[color - 1], COUNTS[shown["count"][i] - 1], times[shown["when"][i]])
                words.add(names)
                assert names[0] in clip.question or names[1] in clip.question
                assert clip.answer in names
            else:
                asked = holds.index(True)
                assert shape != shown["shape"][asked]
                assert color != shown["color"][asked]
        assert len(words) == 1
        assert not gathered or len(holds) <= SMALL_REKV.retrieve_frames


@pytest.mark.heavy
@pytest.mark.slow
def test_quality_is_the_same_from_a_bank_and_says_what_guessing_gives(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_small(build_small(film_tokenizer(), SIDE), tmp_path / "small.safetensors")
    model, films = load_model(tmp_path / "small.safetensors", SMALL_REKV), [make_film(seed, length=90) for seed in (1, 2)]
    plain = film_quality(model, SMALL_REKV, films)
    assert plain == film_quality(model, SMALL_REKV, films, blocks=bank_blocks)
    assert plain.questions == 40
    assert set(plain.accuracy) == {"memory", "uniform", "recent", "blind"}
    commonest = 0
    for name in ("color", "shape", "time", "count"):
        said = [getattr(event, name) for film in films for event in film.events]
        commonest += max(said.count(word) for word in said)
    assert plain.guess == commonest / 40


def test_the_small_model_in_the_published_layout_loads_as_a_checkpoint_folder(tmp_path: Path) -> None:
    """Names as in the llava-hf repositories: each stands in their list of tensors, whatever the number of its layer."""
    small = load_small(WEIGHTS)
    small.model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): x for name, x in load_file(file).items()}
    save_file(old, file, {"format": "pt"})
    (listed,) = cases("rekv", ".json", ["llava-onevision-qwen2-0.5b-ov-hf"])[:1]
    published = read_json(listed)["llava-onevision-qwen2-0.5b-ov-hf"]
    kinds = {re.sub(r"\d+", "N", name): len(shape) for name, (shape, _) in published.items()}
    assert {re.sub(r"\d+", "N", name): x.dim() for name, x in old.items()}.items() <= kinds.items()
    from_folder, from_file = load_model(tmp_path, SMALL_REKV), load_model(WEIGHTS, SMALL_REKV)
    assert from_folder.frames is not None
    assert from_file.frames is not None
    film, ids = torch.from_numpy(make_film(5).frames(0, 3)), from_file.ids("how many circles were there?")
    assert torch.equal(from_folder.frames(film), from_file.frames(film))
    first, second = (encode_prefix(model.decoder, ids) for model in (from_folder, from_file))
    assert torch.equal(first.keys_LGSD, second.keys_LGSD)
    assert torch.equal(from_folder.decoder.logits(first.hidden_SC), from_file.decoder.logits(second.hidden_SC))


@pytest.mark.heavy
@pytest.mark.parametrize("number", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_weights_in_the_package_find_events_in_unseen_films_and_answer_from_them(number: int) -> None:
    assert WEIGHTS.stat().st_size < 4_000_000
    small = load_small(WEIGHTS)
    assert (small.tokenizer.words, small.prompts, small.rekv) == (film_tokenizer().words, SMALL_PROMPTS, SMALL_REKV)
    films = [make_film(70 + seed) for seed in range(number)]
    quality = film_quality(load_model(WEIGHTS, SMALL_REKV), SMALL_REKV, films, blocks=bank_blocks)
    assert quality.questions == 20 * number
    assert min(quality.recall_by_layer) >= 0.9
    assert quality.accuracy["memory"] >= quality.accuracy["uniform"] + 0.2
    assert quality.accuracy["memory"] >= quality.accuracy["recent"] + 0.2
    assert quality.accuracy["blind"] <= quality.guess + 0.1, "and it is the film, not the question, that tells"
