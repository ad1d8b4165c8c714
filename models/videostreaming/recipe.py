"""The small recipe: a model that answers about films of shapes it has not seen, trained from nothing on one CPU core.

The tower is that of ReKV's small model, frozen: it stands for a published CLIP, and both methods see with the same eyes. Stage
``clips`` (the paper's stage 1): text through summaries under the prefix mask, answers from one to a few memories, without a
past and, every other time, behind each other. Stages ``warm_up`` and ``streaming`` (stage 2): streams with propagated memories
and questions that select, first with temporal supervision. Stage ``finding``: the right memory among those of earlier events.
Wherever memories are handed on, they are also asked for the facts that they must carry (``stretches.py``; ours). Everything is
a function of the seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.film_training import film_stage, render_pool
from models.films import COLORS, COUNTS, NOTHING, PLURALS, SHAPES, SIDE, TIMES, Event, before_wording, make_film, wording
from models.rekv.header import SMALL_WEIGHTS
from models.rekv.small import load_small
from models.standing.recipe import RECIPE, run_matcher_recipe
from models.tokenizers import WordTokenizer
from models.training import Stage, Training, TrainResult
from models.videostreaming.carried import carried_loss, fact_heads
from models.videostreaming.evaluate import film_quality
from models.videostreaming.header import SMALL_WEIGHTS as OWN_WEIGHTS
from models.videostreaming.loaders import VideoStreaming, load_model, save_model
from models.videostreaming.losses import EncodedStreams, Selecting, encode_streams, prefix_loss, stream_loss
from models.videostreaming.small import SMALL_CONFIG, build_small, word_tokenizer
from models.videostreaming.stretches import KINDS, Lesson, Stretches

__all__ = ["RECIPES", "FilmsSchedule", "film_tokenizer", "run_recipe", "train_films"]

RECIPES = ("shapes", RECIPE)
"""Ready recipes by name."""

_INITIAL_STD = 0.1  # about 1 / sqrt(hidden size); with the library's 0.02 attention stays flat for hundreds of steps


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmsSchedule:
    """Lengths and rates of the stages."""

    variants: int = 24
    """Rendered frames per kind of event."""
    clip_steps: int = 480
    clip_batch: int = 32
    clip_rate: float = 1.5e-3
    warm_steps: int = 500
    stream_steps: int = 120
    finding_steps: int = 250
    stream_batch: int = 8
    stream_rate: float = 1e-3
    warmup: int = 20
    """Steps of each stage until its rate is reached."""
    clips: int = 6
    """Clips of a stream that are encoded with gradients."""
    earlier: int = 40
    """At most so many clips come before them, encoded without gradients: so long is the past that is to be carried."""
    carried: float = 1.0
    """Weight of the facts that memories are to carry."""
    before: float = 0.4
    """Share of the questions about what came before an event, where memories are handed on."""
    before_finding: float = 0.5
    """The same in the last stage."""
    asked: int = 4
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
        heads = fact_heads(model.width)
        learned.append(heads)
        config = ready.config
        stretches = Stretches(pool, features_PNC, rng, frames=config.frames_per_clip, clip_seconds=config.clip_seconds)
        course = _Course(ready, stretches, schedule, learned, heads, draws)
        training.run(_clips_stage(course))
        for name, steps in (("warm_up", schedule.warm_steps), ("streaming", schedule.stream_steps)):
            training.run(_streams_stage(course, name, steps))
        training.run(_finding_stage(course, seed))
    model.encoder_head = None  # belongs to the prefix task
    model.config = SMALL_CONFIG
    model.eval().requires_grad_(False)
    return ready


def film_tokenizer() -> WordTokenizer:
    """Return a tokenizer of every word of the questions, answers and prompts."""
    rng, event = np.random.default_rng(0), Event("circle", "red", "one", "at noon", 0, 1)
    texts = [*SHAPES, *PLURALS.values(), *COLORS, *COUNTS, *TIMES, NOTHING]
    # Wordings are drawn; twenty draws of each kind leave none out.
    texts += [wording(kind, event, rng) for kind in KINDS for _ in range(20)]
    return word_tokenizer([*texts, *(before_wording(event, rng) for _ in range(20))])


@dataclass(frozen=True, slots=True, eq=False)
class _Course:
    """What all stages work on."""

    ready: VideoStreaming
    stretches: Stretches
    schedule: FilmsSchedule
    learned: nn.Module
    heads: nn.ModuleDict
    """That read the carried facts off the memories."""
    draws: torch.Generator

    def stage(self, name: str, steps: int, rate: float, losses: Callable[[int], Iterator[Mapping[str, Tensor]]]) -> Stage:
        """Return a stage of so many steps."""
        kept = nn.ModuleList([self.ready.model, self.heads])
        rng, generators = self.stretches.rng, (self.draws,)
        warmup = self.schedule.warmup
        return film_stage(name, steps, rate, self.learned, losses, rng, kept=kept, generators=generators, warmup=warmup)

    def stream_losses(
        self, step: int, earlier: int, selecting: Selecting, before: float, *, among: bool = False
    ) -> Mapping[str, Tensor]:
        """Return the losses of streams whose last clips are learned, behind ``earlier`` ones without gradients."""
        ready, schedule, clips = self.ready, self.schedule, earlier + self.schedule.clips
        lesson = self.stretches.lesson(
            schedule.stream_batch,
            clips,
            most_events=min(len(SHAPES), 1 + clips // 2),
            asked=schedule.asked,
            before=before,
            among=among,
        )
        encoded = encode_streams(
            ready, lesson.features_BKTNC, lesson.times_s, bptt_clips=clips, first=step % 2 == 0, learned_from=earlier
        )
        parts = stream_loss(ready, encoded, lesson.times_s, lesson.asked, selecting, self.draws).parts
        return parts | {"carried": self.carried(encoded, lesson, earlier)}

    def carried(self, encoded: EncodedStreams, lesson: Lesson, since: int = 0) -> Tensor:
        """Return the weighted loss of the facts that memories from clip ``since`` on are to carry."""
        return self.schedule.carried * carried_loss(self.heads, encoded.memories[since:], lesson.facts_BKA[:, since:])[0]


def _clips_stage(course: _Course) -> Stage:
    """Teach the encoder to sum up a clip and to hand on what it knows, and the answering model to read what memories say."""
    ready, schedule, rng = course.ready, course.schedule, course.stretches.rng
    most, supervised = ready.config.select_clips, Selecting(forced=1.0)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        # First a clip alone, then several at once: which of the memories a question is about is to be learned, too. Every
        # other time they follow each other: what a memory hands on is learned over few clips before it is over many.
        alone, hands_on = step < schedule.clip_steps // 4, step % 2 == 1
        clips = 1 if alone else int(rng.integers(1 + hands_on, most + 1))
        propagate = clips > 1 and hands_on
        lesson = course.stretches.lesson(
            schedule.clip_batch // clips,
            clips,
            most_events=clips,
            asked=clips,
            before=schedule.before if propagate else 0.0,
        )
        encoded = encode_streams(ready, lesson.features_BKTNC, lesson.times_s, first=step % 4 < 2, propagate=propagate)
        parts = stream_loss(ready, encoded, lesson.times_s, lesson.asked, supervised, course.draws).parts
        if propagate:
            parts["carried"] = course.carried(encoded, lesson)
        if clips == 1:
            texts = [one.question for one in lesson.asked], [one.answer for one in lesson.asked]
            parts["text"] = prefix_loss(ready, lesson.features_BKTNC[:, 0], *texts)
        yield parts

    return course.stage("clips", schedule.clip_steps, schedule.clip_rate, losses)


def _streams_stage(course: _Course, name: str, steps: int) -> Stage:
    """Teach memories to carry the past on over long streams, and questions to find theirs."""
    schedule, rng, warm = course.schedule, course.stretches.rng, name == "warm_up"

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        # A short past first: what a memory is to hold is learned before it is to hold it for long.
        grown = min(1.0, 2 * step / steps) if warm else 1.0
        earlier = int(rng.integers(0, 1 + round(schedule.earlier * grown)))
        selecting = Selecting(forced=schedule.forced) if warm else Selecting(temperature=1.0 - 0.5 * step / steps, weight=0.0)
        yield course.stream_losses(step, earlier, selecting, schedule.before)

    return course.stage(name, steps, schedule.stream_rate * (1.0 if warm else 0.3), losses)


def _finding_stage(course: _Course, seed: int) -> Stage:
    """Teach to find and read the right memory among those of earlier events.

    It draws from generators of its own, so it can be run again on weights of the stages before.
    """
    schedule = course.schedule
    stretches, draws = course.stretches.again(np.random.default_rng([seed, 8])), torch.Generator().manual_seed(seed)
    own = dataclasses.replace(course, stretches=stretches, draws=draws)
    selecting = Selecting(forced=schedule.forced, among_hidden=True)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        earlier = int(own.stretches.rng.integers(0, 1 + schedule.earlier))
        yield own.stream_losses(step, earlier, selecting, schedule.before_finding, among=True)

    return own.stage("finding", schedule.finding_steps, schedule.stream_rate, losses)
