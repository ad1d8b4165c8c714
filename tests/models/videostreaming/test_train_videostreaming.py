"""Training: losses fall, each stage on own videos changes what it may, films are drawn as they are asked about."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_previews import check_previews
from videostreaming_models import publish

from connectors.errors import ConfigError
from models.film_training import render_pool
from models.films import COLORS, NOTHING, SHAPES, SIDE, make_film, order_questions, questions, write_mp4
from models.videostreaming.carried import FACTS, carried_facts, carried_loss, fact_heads
from models.videostreaming.evaluate import GAPS, film_quality
from models.videostreaming.loaders import VideoStreaming, load_model, save_model
from models.videostreaming.losses import Asked, Selecting, encode_streams, prefix_loss, stream_loss
from models.videostreaming.recipe import film_tokenizer
from models.videostreaming.small import build_small
from models.videostreaming.stretches import Stretches
from models.videostreaming.train import train


@pytest.fixture
def ready() -> VideoStreaming:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_small(film_tokenizer(), SIDE)
        made.model.encoder_head = nn.Linear(made.model.width, len(film_tokenizer().words), bias=False)
        for parameter in made.model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.1)
    return made


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


def test_text_of_single_clips_is_learned_through_their_summaries(ready: VideoStreaming) -> None:
    features = torch.randn(2, 8, 4, 256, generator=torch.Generator().manual_seed(1))
    asked, answers = ["what colour was the ring?", "which shape was red?"], ["blue", "circle"]
    optimizer = torch.optim.AdamW(ready.model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = prefix_loss(ready, features, asked, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_answers_and_selection_are_learned_from_streams_and_gradients_reach_everything(ready: VideoStreaming) -> None:
    features = torch.randn(2, 5, 8, 4, 256, generator=torch.Generator().manual_seed(1))
    times = [[(8.0 * k, 8.0 * k + 8) for k in range(5)]] * 2
    relevant = torch.arange(5) == 1
    asked = [Asked(b, "what colour was the ring?", answer, relevant) for b, answer in enumerate(("red", "blue"))]
    draws = torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(ready.model.parameters(), lr=2e-3)
    totals = []
    for _ in range(10):
        found = stream_loss(ready, encode_streams(ready, features, times), times, asked, Selecting(), draws)
        optimizer.zero_grad()
        sum(found.parts.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        totals.append(sum(float(part.detach()) for part in found.parts.values()))
    assert totals[-1] < 0.7 * totals[0]
    model = ready.model
    for part in (model.mm_projector, model.memory_projector, model.language_model, model.streaming_encoder):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for name, p in part.named_parameters() if "embed" not in name)
    assert model.sim_scale.grad is not None and float(model.sim_scale.grad) != 0


def test_gradients_stop_after_so_many_clips(ready: VideoStreaming) -> None:
    features = torch.randn(1, 4, 8, 4, 256, generator=torch.Generator().manual_seed(1)).requires_grad_()
    times = [[(8.0 * k, 8.0 * k + 8) for k in range(4)]]
    for bptt, reached in ((8, [True] * 4), (2, [False, False, True, True])):
        features.grad = None
        encode_streams(ready, features, times, bptt_clips=bptt).memories[-1][0].sum().backward()
        assert features.grad is not None
        assert [bool(part.abs().max() > 0) for part in features.grad[0]] == reached


def test_earlier_clips_hand_on_their_memory_and_take_no_gradient(ready: VideoStreaming) -> None:
    features = torch.randn(1, 4, 8, 4, 256, generator=torch.Generator().manual_seed(1)).requires_grad_()
    times = [[(8.0 * k, 8.0 * k + 8) for k in range(4)]]
    whole, part = (encode_streams(ready, features, times, learned_from=first).memories[-1][0] for first in (0, 2))
    assert torch.equal(whole, part)
    part.sum().backward()
    assert features.grad is not None and [bool(one.abs().max() > 0) for one in features.grad[0]] == [False, False, True, True]


def test_facts_to_be_carried_are_the_colors_of_the_newest_events() -> None:
    made = stretches()
    for _ in range(5):
        stretch = made.stretch(9, 4)
        for k, facts in enumerate(carried_facts(stretch.events, 9, 8).tolist()):
            at_end, at_start = (
                [0] + [1 + list(COLORS).index(e.color) for e in stretch.events if e.start < 8 * edge] for edge in (k + 1, k)
            )
            assert facts == [at_end[-1], at_start[-1]]


def test_a_past_that_no_frame_shows_is_learned_from_what_memories_are_told_to_carry(ready: VideoStreaming) -> None:
    """Two streams that differ in their first clip only."""
    features = torch.randn(1, 3, 8, 4, 256, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1, 1)
    features[1, 0] += 1
    facts = torch.tensor([1, 2])[:, None, None].expand(2, 3, len(FACTS))
    heads = fact_heads(ready.model.width)
    optimizer = torch.optim.AdamW([*ready.model.parameters(), *heads.parameters()], lr=2e-3)
    for _ in range(25):
        memories = encode_streams(ready, features, [[(0.0, 8.0)] * 3] * 2).memories
        loss, right = carried_loss(heads, memories[1:], facts[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert right.tolist() == [1.0] * len(FACTS)
    without = encode_streams(ready, features, [[(0.0, 8.0)] * 3] * 2, propagate=False).memories
    assert carried_loss(heads, without[1:], facts[:, 1:])[1].tolist() == [0.5] * len(FACTS)


def test_the_answer_alone_moves_the_selection_through_its_straight_path(ready: VideoStreaming) -> None:
    features = torch.randn(1, 6, 8, 4, 256, generator=torch.Generator().manual_seed(1))
    times = [[(8.0 * k, 8.0 * k + 8) for k in range(6)]]
    asked = [Asked(0, "which shape was red?", "ring", torch.zeros(6, dtype=torch.bool))]
    draws = torch.Generator().manual_seed(2)
    found = stream_loss(ready, encode_streams(ready, features, times), times, asked, Selecting(weight=0.0), draws)
    assert set(found.parts) == {"answers"}
    found.parts["answers"].backward()
    assert ready.model.sim_scale.grad is not None and float(ready.model.sim_scale.grad) != 0


def stretches() -> Stretches:
    rng = np.random.default_rng(4)
    return Stretches(render_pool(1, rng), torch.zeros(0), rng, frames=8, clip_seconds=8.0)


def test_a_stretch_of_a_film_shows_what_is_asked_about() -> None:
    rng = np.random.default_rng(4)
    pool = render_pool(1, rng)
    made = Stretches(pool, torch.zeros(0), rng, frames=8, clip_seconds=8.0)
    shapes, colors, times = (pool.labels[name] for name in ("shape", "color", "when"))
    for _ in range(60):
        stretch = made.stretch(5, 3)
        asked = made.ask(stretch, 0, 0.3)
        row_F = torch.from_numpy(stretch.rows_KT.reshape(-1))
        for event in stretch.events:
            inside = row_F[event.start : event.stop]
            assert {SHAPES[s - 1] for s in shapes[inside].tolist()} == {event.shape}
            assert {list(COLORS)[c - 1] for c in colors[inside].tolist()} == {event.color}
            assert len(set(times[inside].tolist())) == 1
        shown = sum(len(event.frames) for event in stretch.events)
        assert int((shapes[row_F] > 0).sum()) == shown
        named = [e for e in stretch.events if e.shape in asked.question or e.color in asked.question]
        named += [e for e in stretch.events if e.shape[:5] in asked.question]  # plurals
        clips = {k for k in range(5) if any(e.start < 8 * k + 8 and e.stop > 8 * k for e in named)}
        assert set(asked.relevant_K.nonzero().flatten().tolist()) <= clips and asked.relevant_K.any()


@pytest.mark.parametrize("among", [False, True])
def test_what_came_before_an_event_is_to_be_found_where_it_begins_and_not_where_it_stands_by_itself(among: bool) -> None:
    made, nothing = stretches(), 0
    for _ in range(100):
        stretch = made.stretch(9, 4)
        asked = made.ask(stretch, 0, before=1.0, among=among)
        place = next(i for i, event in enumerate(stretch.events) if event.shape in asked.question)
        begins, earlier = stretch.events[place].start // 8, stretch.events[place - 1] if place else None
        assert asked.answer == (NOTHING if earlier is None else earlier.color)
        assert asked.relevant_K.nonzero().flatten().tolist() == [begins]
        shown = [k for k in range(begins) if k not in asked.hidden]
        assert begins not in asked.hidden and len(shown) == (0 if not among else earlier.start // 8 if earlier else begins)
        nothing += len(stretch.events) > 1 and asked.answer == NOTHING
    assert nothing < 30  # of some 75


@pytest.mark.parametrize("among_hidden", [False, True])
def test_hidden_clips_move_no_answer_and_the_selection_only_where_they_are_told_apart(
    among_hidden: bool, ready: VideoStreaming
) -> None:
    """Nor is the learned scale of the similarities lost to them: minus infinity times a weight has no gradient."""
    features = torch.randn(1, 6, 8, 4, 256, generator=torch.Generator().manual_seed(1)).requires_grad_()
    times = [[(8.0 * k, 8.0 * k + 8) for k in range(6)]]
    asked = [Asked(0, "what colour was there before the ring?", "red", torch.arange(6) == 3, hidden=range(3))]
    encoded = encode_streams(ready, features, times, propagate=False)
    selecting = Selecting(among_hidden=among_hidden)
    parts = stream_loss(ready, encoded, times, asked, selecting, torch.Generator().manual_seed(2)).parts
    ready.model.sim_scale.grad = None
    for name, moves_hidden in (("answers", False), ("selection", among_hidden)):
        features.grad = None
        parts[name].backward(retain_graph=True)
        assert features.grad is not None
        assert [bool(part.abs().max() > 0) for part in features.grad[0]] == [moves_hidden] * 3 + [True] * 3
    assert ready.model.sim_scale.grad is not None and ready.model.sim_scale.grad.isfinite()


def test_questions_about_the_past_name_the_event_before() -> None:
    film = make_film(5)
    asked = order_questions(film, np.random.default_rng(0))
    assert asked[0].answer == NOTHING
    assert [one.answer for one in asked[1:]] == [event.color for event in film.events[:-1]]
    assert all(one.event.shape in one.text for one in asked)


@pytest.mark.parametrize("stage", ["captions", "instructions", "streaming"])
def test_each_stage_learns_from_own_videos_and_leaves_the_rest(stage: str, annotations: Path, tmp_path: Path) -> None:
    folder = publish(tmp_path / "start", projectors=False)
    said = {"config": {"encoder_layers": 2, "frames_per_clip": 4, "clip_seconds": 4.0, "frame_summaries": 1, "select_clips": 2}}
    (folder / "videostreaming.json").write_text(json.dumps(said))
    given = {"annotations": str(annotations), "checkpoint": str(folder), "iterations": 2, "batch": 2, "model_rate": 1e-3}
    done = train(tmp_path / "out", stage=stage, supervised=0.5, most_clips=4, device="cpu", **given)
    check_previews(done, {"streaming": 2} if stage == "streaming" else {})
    assert set(done.metrics) == {"loss_first", "loss_last"}
    again = load_model(done.weights)
    before = load_model(folder, new_projectors=True)
    changed = {
        name.split(".")[0]
        for name, tensor in again.model.state_dict().items()
        if name.split(".")[0] in ("vision_tower", "streaming_encoder", "language_model")
        and not torch.equal(tensor, before.model.state_dict()[name])
    }
    assert (
        changed
        == {
            "captions": set(),
            "instructions": {"streaming_encoder"},
            "streaming": {"streaming_encoder", "language_model"},
        }[stage]
    )


def test_words_that_the_small_model_cannot_say_are_refused(annotations: Path, ready: VideoStreaming, tmp_path: Path) -> None:
    ready.model.encoder_head = None
    save_model(ready, tmp_path / "small.safetensors")
    entries = json.loads(annotations.read_text())
    entries[0]["conversations"][0]["answer"] = "purple"
    own = annotations.with_name("purple.json")
    own.write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=r"does not know the words \['purple'\]"):
        train(tmp_path / "out", annotations=str(own), checkpoint=str(tmp_path / "small.safetensors"), device="cpu")


def test_quality_is_measured_in_every_mode(ready: VideoStreaming) -> None:
    film = make_film(3, length=60, events=2)
    quality = film_quality(ready, [film])
    assert quality.questions == 2 * 5 and set(quality.accuracy_by_kind) == {"before", "color", "count", "shape", "when"}
    assert set(quality.accuracy) == set(quality.recall) == {"memory", "no_propagation", "last", "uniform", "blind"}
    assert quality.recall["blind"] == 0 and 0 <= quality.guess <= 1 and quality.before_guess == 0.5
    assert "none before" in quality.before_by_gap and set(quality.before_by_gap) <= set(GAPS)
