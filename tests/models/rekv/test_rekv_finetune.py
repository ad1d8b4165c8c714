"""Fine-tuning on own videos: annotations, frames, a small model and a checkpoint folder that learn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_rekv_loaders import checkpoint
from training_previews import check_previews

from connectors.errors import ConfigError, SourceError
from models.answer_loss import answer_loss, pack
from models.films import SIDE, make_film, questions, write_mp4
from models.rekv.header import SMALL_REKV
from models.rekv.loaders import load_model
from models.rekv.recipe import film_tokenizer
from models.rekv.small import build_small, save_small
from models.rekv.train import train
from models.video_samples import Sample, read_samples, sample_frames


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short films with their questions."""
    folder = tmp_path_factory.mktemp("films")
    entries = []
    for seed in (1, 2):
        film = make_film(seed, length=20, events=1)
        write_mp4(film, folder / f"film{seed}.mp4", scale=1)
        asked = [
            {"question": one.text, "answer": one.answer, "start_time": one.event.start, "end_time": one.event.stop}
            for one in questions(film, np.random.default_rng(seed))
        ]
        entries.append({"video_path": f"film{seed}.mp4", "conversations": asked})
    (folder / "annotations.json").write_text(json.dumps(entries))
    return folder / "annotations.json"


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_small(build_small(film_tokenizer(), SIDE), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def options(annotations: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"annotations": str(annotations), "iterations": 30, "learning_rate": 3e-3, "frames": 4}
    return values | changes


def test_a_small_model_learns_from_own_videos_and_runs_afterwards(annotations: Path, small_file: Path, tmp_path: Path) -> None:
    done = train(
        tmp_path / "out", annotations=str(annotations), checkpoint=str(small_file), iterations=30, learning_rate=3e-3, frames=4
    )
    check_previews(done, {"finetune": 4})
    assert done.metrics["loss_last"] < 0.5 * done.metrics["loss_first"]
    assert 0 <= done.metrics["validation_accuracy"] <= 1
    before, after = load_model(small_file, SMALL_REKV), load_model(done.weights, SMALL_REKV)
    assert before.frames is not None
    assert after.frames is not None
    towers = (model.frames.model.model.vision_tower.state_dict() for model in (before, after) if model.frames)
    assert all(torch.equal(a, b) for a, b in zip(*(tower.values() for tower in towers), strict=True))
    assert json.loads((tmp_path / "out" / "training.json").read_text())["metrics"] == done.metrics


def test_a_checkpoint_folder_learns_its_projector_alone(annotations: Path, tmp_path: Path) -> None:
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = checkpoint(tmp_path / "start", "llava_onevision")
    words = Tokenizer(WordLevel({"<unknown>": 0, "what": 1, "<end>": 3, "?": 4}, unk_token="<unknown>"))
    words.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unknown>").save_pretrained(
        folder
    )
    done = train(tmp_path, **options(annotations, checkpoint=str(folder), trained="projector", iterations=2, validation=0.0))
    assert set(done.metrics) == {"loss_first", "loss_last"}
    before, after = load_model(folder, SMALL_REKV), load_model(done.weights, SMALL_REKV)
    changed = {
        name.split(".")[1]
        for (name, a), b in zip(
            before.frames.model.state_dict().items(),  # type: ignore[union-attr]
            after.frames.model.state_dict().values(),  # type: ignore[union-attr]
            strict=True,
        )
        if not torch.equal(a, b)
    }
    assert changed == {"multi_modal_projector"}
    assert after.ids("what?").tolist() == before.ids("what?").tolist()


def test_padding_and_other_samples_do_not_change_the_loss_of_a_sample() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_small(film_tokenizer(), SIDE).model
    decoder, width = model.model.language_model, model.config.text_config.hidden_size
    film = [torch.randn(n, width, generator=torch.Generator().manual_seed(n)) for n in (4, 12)]
    prompts, answers = [[5, 6, 7], [8, 9]], [[10, 11, 0], [12, 0]]

    def loss(rows: list[int]) -> torch.Tensor:
        batch = pack(decoder, [2, 3], [film[i] for i in rows], [prompts[i] for i in rows], [answers[i] for i in rows])
        return answer_loss(decoder, model.lm_head, batch).loss

    torch.testing.assert_close(loss([0, 1]), (3 * loss([0]) + 2 * loss([1])) / 5)


def test_frames_are_spread_over_the_time_of_the_question(annotations: Path) -> None:
    video = annotations.parent / "film1.mp4"
    every = sample_frames(Sample(video, 0.0, None, "", ""), 99)
    assert every.shape == (20, SIDE, SIDE, 3)
    assert torch.equal(sample_frames(Sample(video, 0.0, None, "", ""), 4), every[[2, 7, 12, 17]])
    assert torch.equal(sample_frames(Sample(video, 5.0, 7.0, "", ""), 4), every[5:7])
    assert torch.equal(sample_frames(Sample(video, 50.0, 60.0, "", ""), 4), every[19:])


def test_annotations_that_cannot_be_used_are_named(annotations: Path, small_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    with pytest.raises(ConfigError, match=r"bad\.json cannot be read"):
        read_samples(file)
    for content, message in [
        ("{", "is not JSON"),
        ("[]", "holds no question"),
        ('[{"video_path": "x.mp4"}]', "entry 0: needs video_path and conversations"),
        ('[{"video_path": "x.mp4", "conversations": []}]', "entry 0: there is no video"),
    ]:
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_samples(file)
    entries = json.loads(annotations.read_text())
    entries[0]["conversations"][0]["answer"] = "a zebra"
    (annotations.parent / "zebra.json").write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=r"does not know the words \['a', 'zebra'\]"):
        train(tmp_path, **options(annotations.parent / "zebra.json", checkpoint=str(small_file)))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match=r"broken\.mp4: cannot be read as a video"):
        sample_frames(Sample(tmp_path / "broken.mp4", 0.0, None, "", ""), 4)
    with pytest.raises(ConfigError, match=r"device must be .* got 'tpu'"):
        train(tmp_path, **options(annotations, checkpoint=str(small_file), device="tpu"))


def test_recipe_and_own_data_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"brings its own data and settings; remove \['frames'\]"):
        train(tmp_path, recipe="shapes", frames=3)
    with pytest.raises(ConfigError, match=r"no option 'frame' .*'frames'"):
        train(tmp_path, annotations="x.json", frame=3)
