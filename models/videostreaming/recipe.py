"""The small recipe: a model that answers about films of shapes it has not seen, trained from nothing on one CPU core.

The tower is that of ReKV's small model, frozen: it stands for a published CLIP, and both methods see with the same eyes. Stage
``clips`` (the paper's stage 1): clips without a past, text through summaries under the prefix mask, and answers from one to a
few memories. Stages ``warm_up`` and ``streaming`` (stage 2): streams with propagated memories and questions that select,
first with temporal supervision. Everything is a function of the seed.
"""

# B streams, K clips, T frames of a clip, N tokens per frame, C width, P frames of the pool

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.film_training import FramePool, film_stage, render_pool
from models.films import (
    COLORS,
    COUNTS,
    NOTHING,
    PLURALS,
    SHAPES,
    SIDE,
    TIMES,
    Event,
    answer_of,
    before_wording,
    make_film,
    wording,
)
from models.rekv.header import SMALL_WEIGHTS
from models.rekv.small import load_small
from models.standing.recipe import RECIPE, run_matcher_recipe
from models.tokenizers import WordTokenizer
from models.training import Stage, Training, TrainResult
from models.videostreaming.evaluate import film_quality
from models.videostreaming.header import SMALL_WEIGHTS as OWN_WEIGHTS
from models.videostreaming.loaders import VideoStreaming, load_model, save_model
from models.videostreaming.losses import Asked, Selecting, encode_streams, prefix_loss, stream_loss
from models.videostreaming.small import SMALL_CONFIG, build_small, word_tokenizer

__all__ = ["RECIPES", "FilmsSchedule", "film_tokenizer", "run_recipe", "train_films"]

RECIPES = ("shapes", RECIPE)
"""Ready recipes by name."""

_KINDS = ("color", "shape", "when", "count")
_FILM_CLIPS = 75  # of a film of ten minutes: how late a stream of training may be
_EVENT_FRAMES = (5, 9)
_INITIAL_STD = 0.1  # about 1 / sqrt(hidden size); with the library's 0.02 attention stays flat for hundreds of steps


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmsSchedule:
    """Lengths and rates of the stages."""

    variants: int = 24
    """Rendered frames per kind of event."""
    clip_steps: int = 360
    clip_batch: int = 32
    clip_rate: float = 1.5e-3
    warm_steps: int = 180
    stream_steps: int = 20
    stream_batch: int = 4
    stream_rate: float = 1e-3
    clips: int = 8
    """Clips of a stream."""
    asked: int = 8
    """Questions about each stream."""
    forced: float = 0.7
    """Share of questions of the warm-up whose clips are selected in any case."""
    shown_clips: int = 4
    """Memories that a question selects in training; finding the right one of them is learned. Afterwards the settings' own."""
    unseen_films: int = 5
    """Films of ten minutes that the figures at the end come from."""


def run_recipe(training: Training, recipe: str, seed: int, schedule: FilmsSchedule | None = None) -> TrainResult:
    """Train a recipe, write ``<recipe>.safetensors`` and measure it on unseen films."""
    if recipe == RECIPE:
        return _train_beside(training, seed)
    schedule = schedule or FilmsSchedule()
    settings = {"method": "videostreaming", "recipe": recipe, "seed": seed, "schedule": dataclasses.asdict(schedule)}
    if (complete := training.open(settings)) is not None:
        return complete
    ready, weights = train_films(seed=seed, schedule=schedule, training=training), training.path / f"{recipe}.safetensors"
    save_model(ready, weights)
    # Training draws single frames, not films, so films of every seed are unseen.
    films = [make_film(number) for number in range(schedule.unseen_films)]
    quality = film_quality(load_model(weights), films)
    metrics = {f"accuracy_{mode}": value for mode, value in quality.accuracy.items()}
    metrics |= {f"recall_{mode}": value for mode, value in quality.recall.items()}
    return training.finish(weights, metrics | {"accuracy_guess": quality.guess, "questions": float(quality.questions)})


def _train_beside(training: Training, seed: int) -> TrainResult:
    """Train the matcher of standing questions beside the small model that comes with the package."""
    ready = load_model(OWN_WEIGHTS)
    return run_matcher_recipe(
        training,
        "videostreaming",
        seed,
        frames=torch.no_grad()(ready.model.frame_tokens),
        words=lambda text: ready.model.embed(ready.asked_ids(text)),
        words_VW=ready.model.streaming_encoder.get_input_embeddings().weight.detach(),
    )


def train_films(*, seed: int = 0, schedule: FilmsSchedule | None = None, training: Training | None = None) -> VideoStreaming:
    """Train a small model from nothing."""
    schedule, training = schedule or FilmsSchedule(), training or Training()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        training_config = dataclasses.replace(SMALL_CONFIG, select_clips=schedule.shown_clips)
        ready = build_small(film_tokenizer(), SIDE, training_config)
        model, rng = ready.model, np.random.default_rng([seed, 7])
        draws = torch.Generator().manual_seed(seed)
        pool = render_pool(schedule.variants, rng)
        assert model.vision_tower is not None and isinstance(ready.tokenizer, WordTokenizer)
        model.vision_tower.load_state_dict(load_small(SMALL_WEIGHTS).model.model.vision_tower.state_dict())
        model.vision_tower.requires_grad_(False)
        model.encoder_head = nn.Linear(model.width, len(ready.tokenizer.words), bias=False)
        with torch.no_grad():
            features_PNC = torch.cat([model.frame_tokens(part) for part in torch.split(pool.frames_NHW3, 512)])
        learned = nn.ModuleList(
            [model.mm_projector, model.streaming_encoder, model.memory_projector, model.language_model, model.encoder_head]
        )
        for parameter in learned.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=_INITIAL_STD)
        learned.append(nn.ParameterList([model.sim_scale]))
        world = _World(pool, features_PNC, rng)
        training.run(_clips_stage(ready, world, schedule, learned, draws))
        for name, steps in (("warm_up", schedule.warm_steps), ("streaming", schedule.stream_steps)):
            training.run(_streams_stage(name, steps, ready, world, schedule, learned, draws))
    model.encoder_head = None  # belongs to the prefix task
    model.config = SMALL_CONFIG
    model.eval().requires_grad_(False)
    return ready


def film_tokenizer() -> WordTokenizer:
    """Return a tokenizer of every word of the questions, answers and prompts."""
    rng, event = np.random.default_rng(0), Event("circle", "red", "one", "at noon", 0, 1)
    texts = [*SHAPES, *PLURALS.values(), *COLORS, *COUNTS, *TIMES, NOTHING]
    # Wordings are drawn; twenty draws of each kind leave none out.
    texts += [wording(kind, event, rng) for kind in _KINDS for _ in range(20)]
    return word_tokenizer([*texts, *(before_wording(event, rng) for _ in range(20))])


@dataclass(slots=True, eq=False)
class _Stream:
    """A stretch of a film."""

    rows_KT: NDArray[np.int64]
    """Rows of the pool."""
    events: list[Event]
    """With frames counted from the stretch's first one."""
    first_clip: int


class _World:
    """Draws stretches of films from rendered frames, and questions about them."""

    def __init__(self, pool: FramePool, features_PNC: Tensor, rng: np.random.Generator) -> None:
        self._pool, self.features_PNC, self.rng = pool, features_PNC, rng

    def stream(self, clips: int, frames: int, most_events: int) -> _Stream:
        """Draw a stretch of so many clips with up to so many events of different shapes and colors."""
        rng, length = self.rng, clips * frames
        number = int(rng.integers(1, most_events + 1))
        lengths = rng.integers(_EVENT_FRAMES[0], _EVENT_FRAMES[1] + 1, number)
        lengths = np.minimum(lengths, max(length // number - 1, 1))
        gaps = np.sort(rng.choice(length - int(lengths.sum()) + 1, number, replace=True))
        starts = gaps + np.cumsum(lengths) - lengths
        shapes, colors = rng.permutation(len(SHAPES)), rng.permutation(len(COLORS))
        counts = rng.integers(len(COUNTS), size=number)
        # The light changes as time goes on, in up to four parts of any length.
        time_F = np.searchsorted(np.sort(rng.integers(0, length + 1, len(TIMES) - 1)), np.arange(length), side="right")
        keys = [(0, 0, 0, int(time)) for time in time_F]
        events = []
        for e in range(number):
            span = range(int(starts[e]), int(starts[e] + lengths[e]))
            time = int(time_F[span.start])
            for frame in span:
                keys[frame] = (int(shapes[e]) + 1, int(colors[e]) + 1, int(counts[e]) + 1, time)
            said = (SHAPES[shapes[e]], list(COLORS)[colors[e]], COUNTS[counts[e]], list(TIMES)[time])
            events.append(Event(*said, span.start, span.stop))
        rows = [int(self._pool.rows[key][rng.integers(len(self._pool.rows[key]))]) for key in keys]
        return _Stream(np.array(rows).reshape(clips, frames), events, int(rng.integers(0, _FILM_CLIPS - clips + 1)))

    def ask(self, stream: _Stream, number: int, before: float = 0.3) -> Asked:
        """Draw a question about an event of a stretch; a share of ``before`` is about what came before it."""
        rng, (clips, frames) = self.rng, stream.rows_KT.shape
        place = int(rng.integers(len(stream.events)))
        event = stream.events[place]
        if rng.random() < before:
            text, answer = before_wording(event, rng), stream.events[place - 1].color if place else NOTHING
        else:
            kind = _KINDS[rng.integers(len(_KINDS))]
            text, answer = wording(kind, event, rng), answer_of(kind, event)
        relevant_K = torch.zeros(clips, dtype=torch.bool)
        relevant_K[event.start // frames : (event.stop - 1) // frames + 1] = True
        return Asked(number, text, answer, relevant_K)


def _clips_stage(
    ready: VideoStreaming, world: _World, schedule: FilmsSchedule, learned: nn.Module, draws: torch.Generator
) -> Stage:
    """Teach the encoder to sum up a clip, and the answering model to read what it says."""
    frames = ready.config.frames_per_clip
    most = ready.config.select_clips
    supervised = Selecting(forced=1.0)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        # First a clip alone, then several at once: which of the memories a question is about is to be learned, too.
        together = 1 if step < schedule.clip_steps // 4 else int(world.rng.integers(1, most + 1))
        streams = [world.stream(together, frames, together) for _ in range(schedule.clip_batch // together)]
        asked = [world.ask(stream, b, before=0.0) for b, stream in enumerate(streams) for _ in range(together)]
        features_BKTNC = world.features_PNC[torch.from_numpy(np.stack([stream.rows_KT for stream in streams]))]
        times = [_times(ready, stream) for stream in streams]
        encoded = encode_streams(ready, features_BKTNC, times, first=step % 2 == 0, propagate=False)
        parts = stream_loss(ready, encoded, times, asked, supervised, draws).parts
        if together == 1:
            parts["text"] = prefix_loss(
                ready, features_BKTNC[:, 0], [one.question for one in asked], [one.answer for one in asked]
            )
        yield parts

    return film_stage(
        "clips", schedule.clip_steps, schedule.clip_rate, learned, losses, world.rng, kept=ready.model, generators=(draws,)
    )


def _streams_stage(
    name: str,
    steps: int,
    ready: VideoStreaming,
    world: _World,
    schedule: FilmsSchedule,
    learned: nn.Module,
    draws: torch.Generator,
) -> Stage:
    """Teach memories to carry the past on, and questions to find theirs."""
    frames, warm = ready.config.frames_per_clip, name == "warm_up"
    rate = schedule.stream_rate * (1.0 if warm else 0.3)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        # Short streams first: what a memory is to hold is learned before it is to hold it for long.
        clips = schedule.clips if not warm else 4 + round((schedule.clips - 4) * min(1.0, 2 * step / steps))
        streams = [world.stream(clips, frames, min(len(SHAPES), 1 + clips // 2)) for _ in range(schedule.stream_batch)]
        asked = [world.ask(stream, b) for b, stream in enumerate(streams) for _ in range(schedule.asked)]
        features_BKTNC = world.features_PNC[torch.from_numpy(np.stack([stream.rows_KT for stream in streams]))]
        times = [_times(ready, stream) for stream in streams]
        encoded = encode_streams(ready, features_BKTNC, times, bptt_clips=schedule.clips, first=step % 2 == 0)
        selecting = Selecting(forced=schedule.forced) if warm else Selecting(temperature=1.0 - 0.5 * step / steps, weight=0.0)
        yield stream_loss(ready, encoded, times, asked, selecting, draws).parts

    return film_stage(name, steps, rate, learned, losses, world.rng, kept=ready.model, generators=(draws,))


def _times(ready: VideoStreaming, stream: _Stream) -> list[tuple[float, float]]:
    length = ready.config.clip_seconds
    numbers = range(stream.first_clip, stream.first_clip + len(stream.rows_KT))
    return [(number * length, (number + 1) * length) for number in numbers]
