"""The small recipe: a video-language model that answers about films of shapes, trained from nothing on one CPU core.

Stage ``vision``: the tower learns shape, colour, number and light of single frames, and is frozen. Stage ``answers``:
projector and decoder learn to answer from short clips (next-token cross-entropy on the answer, full causal attention), half
of them whole and half as retrieval leaves them, and to score the frames that hold the answer above the others in every layer:
large models do the last unasked, a small one must be told. Everything is a function of the seed.
"""

# B clips, F frames, T tokens per frame, P patches, C hidden size, n tokens, G key/value heads, D head dim, N rendered frames

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.rekv.films import COLOURS, COUNTS, PLURALS, SHAPES, SIDE, TIMES, Event, answer_of, render, wording
from models.rekv.instruction import answer_loss, pack
from models.rekv.small import SMALL_PROMPTS, SmallModel, WordTokenizer, build_small
from models.rekv.vision import FrameEncoder

__all__ = ["FilmsSchedule", "Progress", "film_tokenizer", "train_films"]

logger = logging.getLogger(__name__)

_KINDS = ("colour", "shape", "when", "count")
_REPORTS = 60  # of a stage
_WARMUP, _LAST_FACTOR = 100, 0.02
_GRADIENT_NORM = 1.0
_RETRIEVAL_WEIGHT = 0.5
_FIRST_LONGEST, _LONGEST_EVENT = 6, 10  # frames
_GATHERED_FROM = 3  # frames of the clip for each that is left
_INITIAL_STD = 0.1  # about 1 / sqrt(hidden size); with the library's 0.02 attention stays flat for hundreds of steps


@dataclass(frozen=True, slots=True)
class Progress:
    """State of one training stage."""

    stage: str
    step: int
    """Steps done, 1..``steps``."""
    steps: int
    loss: float
    """Mean since the last report."""
    note: str = ""
    """What else there is to say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmsSchedule:
    """Lengths and rates of the stages."""

    variants: int = 48
    """Rendered frames per kind of event."""
    vision_steps: int = 1200
    vision_batch: int = 128
    vision_rate: float = 2e-3
    answer_steps: int = 3000
    answer_batch: int = 32
    answer_rate: float = 1e-3
    least_frames: int = 4
    most_frames: int = 32
    """Frames of the shortest and longest clip; in the first half of the stage the longest grows from ``_FIRST_LONGEST``."""
    gathered: float = 0.5
    """Share of the steps whose clips look like what retrieval leaves of a long film."""
    unseen_films: int = 10
    """Films of ten minutes that the figures at the end come from."""


@dataclass(slots=True, eq=False)
class _Pool:
    """Rendered frames and what they show; index 0 of shape, colour and count means nothing."""

    frames_NHW3: Tensor
    labels: dict[str, Tensor]
    rows: dict[tuple[int, int, int, int], Tensor]
    """(shape, colour, count, time) → rows."""


def train_films(
    *, seed: int = 0, schedule: FilmsSchedule | None = None, progress: Callable[[Progress], None] | None = None
) -> SmallModel:
    """Train a small model from nothing. About ten minutes on one core with the default schedule."""
    schedule = schedule or FilmsSchedule()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = build_small(film_tokenizer(), SIDE)
        rng = np.random.default_rng([seed, 7])
        pool = _render_pool(schedule, rng)
        _train_vision(small, pool, schedule, rng, progress)
        _train_answers(small, pool, schedule, rng, progress)
    small.model.eval().requires_grad_(False)
    return small


def film_tokenizer() -> WordTokenizer:
    """Return a tokenizer of every word of the questions, answers and prompts."""
    rng = np.random.default_rng(0)
    event = Event("circle", "red", "one", "at noon", 0, 1)
    texts = [*SHAPES, *PLURALS.values(), *COLOURS, *COUNTS, *TIMES, SMALL_PROMPTS.prefix, SMALL_PROMPTS.suffix]
    # Wordings are drawn; twenty draws of each kind leave none out.
    texts += [wording(kind, event, rng) for kind in _KINDS for _ in range(20)]
    return WordTokenizer.of(texts)


def _render_pool(schedule: FilmsSchedule, rng: np.random.Generator) -> _Pool:
    frames, labels = [], []
    colours, times = list(COLOURS), list(TIMES)
    for time in range(len(times)):
        kinds = [(0, 0, 0)] * (10 * schedule.variants // 2)
        kinds += [
            (s + 1, c + 1, n + 1)
            for s in range(len(SHAPES))
            for c in range(len(COLOURS))
            for n in range(len(COUNTS))
            for _ in range(schedule.variants)
        ]
        for s, c, n in kinds:
            event = Event(SHAPES[s - 1], colours[c - 1], COUNTS[n - 1], times[time], 0, 1) if s else None
            frames.append(render(event, times[time], int(rng.integers(8)), rng, rng))
            labels.append((s, c, n, time))
    labels_N4 = torch.tensor(labels)
    rows = {tuple(kind.tolist()): (labels_N4 == kind).all(dim=1).nonzero().flatten() for kind in torch.unique(labels_N4, dim=0)}
    named = dict(zip(("shape", "colour", "count", "when"), labels_N4.unbind(1), strict=True))
    return _Pool(torch.from_numpy(np.stack(frames)), named, rows)


def _train_vision(
    small: SmallModel,
    pool: _Pool,
    schedule: FilmsSchedule,
    rng: np.random.Generator,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Teach the tower to tell what a frame shows, read off the mean of its patches."""
    tower = small.model.model.vision_tower
    pixels = FrameEncoder.of(small.model, "llava_onevision").pixels
    width = small.model.config.vision_config.hidden_size
    heads = nn.ModuleDict({name: nn.Linear(width, int(label.max()) + 1) for name, label in pool.labels.items()})
    tower.train()
    parameters = [*tower.parameters(), *heads.parameters()]
    optimiser, scheduler = _optimiser(parameters, schedule.vision_rate, schedule.vision_steps)
    total, every = 0.0, max(1, schedule.vision_steps // _REPORTS)
    for step in range(1, schedule.vision_steps + 1):
        rows = torch.from_numpy(rng.integers(len(pool.frames_NHW3), size=schedule.vision_batch))
        patches_BPC = _patches(tower, pixels(pool.frames_NHW3[rows]))
        losses = [cross_entropy(head(patches_BPC.mean(dim=1)), pool.labels[name][rows]) for name, head in heads.items()]
        total += _update(sum(losses, torch.zeros(())), parameters, optimiser, scheduler)
        if step % every == 0:
            _report(Progress("vision", step, schedule.vision_steps, total / every), progress)
            total = 0.0
    tower.eval().requires_grad_(False)


def _train_answers(
    small: SmallModel,
    pool: _Pool,
    schedule: FilmsSchedule,
    rng: np.random.Generator,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Teach projector and decoder to answer from clips put together of rendered frames."""
    core = small.model.model
    pixels = FrameEncoder.of(small.model, "llava_onevision").pixels
    with torch.no_grad():
        chunks = [_patches(core.vision_tower, pixels(part)) for part in torch.split(pool.frames_NHW3, 512)]
    patches_NPC = torch.cat(chunks)
    projector, decoder = core.multi_modal_projector.train(), core.language_model.train()
    parameters = [*projector.parameters(), *decoder.parameters()]
    for parameter in parameters:
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=_INITIAL_STD)
    optimiser, scheduler = _optimiser(parameters, schedule.answer_rate, schedule.answer_steps)
    total, every = 0.0, max(1, schedule.answer_steps // _REPORTS)
    for step in range(1, schedule.answer_steps + 1):
        grown = min(1.0, 2 * step / schedule.answer_steps)
        longest = round(_FIRST_LONGEST + (schedule.most_frames - _FIRST_LONGEST) * grown)
        gathered = bool(rng.random() < schedule.gathered)
        most = min(longest, small.rekv.retrieve_frames) if gathered else longest
        frames = int(rng.integers(schedule.least_frames, most + 1))
        clips = [_clip(pool, frames, rng, gathered=gathered) for _ in range(schedule.answer_batch)]
        rows_BF = torch.stack([clip.rows_F for clip in clips])
        features = core.apply_pooling(projector(patches_NPC[rows_BF.flatten()]))
        features_BnC = features.reshape(len(clips), -1, features.shape[-1])
        loss = _clip_loss(small, clips, features_BnC, frames)
        total += _update(loss, parameters, optimiser, scheduler)
        if step % every == 0:
            _report(Progress("answers", step, schedule.answer_steps, total / every), progress)
            total = 0.0


@dataclass(slots=True, eq=False)
class _Clip:
    rows_F: Tensor
    """Rows of the pool."""
    question: str
    answer: str
    holds_F: Tensor
    """True for the frames that show the event asked about."""


def _clip(pool: _Pool, frames: int, rng: np.random.Generator, *, gathered: bool) -> _Clip:
    """Draw one to five events of different shapes and colours among empty frames, and a question about one of them.

    ``gathered``: what retrieval leaves of a longer clip: the event asked about, frames of others, and then empty ones.
    """
    owner_F = _draw_events(_GATHERED_FROM * frames if gathered else frames, rng)
    length, number = len(owner_F), int(owner_F.max()) + 1
    shapes, colours = rng.permutation(len(SHAPES)), rng.permutation(len(COLOURS))
    counts, asked = rng.integers(1, len(COUNTS) + 1, number), int(rng.integers(number))
    # The light changes as time goes on, in up to four parts of any length.
    time_F = np.searchsorted(np.sort(rng.integers(0, length + 1, len(TIMES) - 1)), np.arange(length), side="right")
    for e in range(number):  # an event has the light of its first frame, as in a film
        inside = np.flatnonzero(owner_F == e)
        time_F[inside] = time_F[inside[0]]
    time = list(TIMES)[time_F[owner_F == asked][0]]
    if gathered:
        order_F = np.where(owner_F == asked, 0.0, np.where(owner_F >= 0, 1.0, 2.0)) + rng.random(length)
        kept_F = np.sort(np.argsort(order_F)[:frames])
        owner_F, time_F = owner_F[kept_F], time_F[kept_F]
    keys = [
        (int(shapes[e]) + 1, int(colours[e]) + 1, int(counts[e]), int(t)) if e >= 0 else (0, 0, 0, int(t))
        for e, t in zip(owner_F, time_F, strict=True)
    ]
    rows = [int(pool.rows[key][rng.integers(len(pool.rows[key]))]) for key in keys]
    event = Event(SHAPES[shapes[asked]], list(COLOURS)[colours[asked]], COUNTS[counts[asked] - 1], time, 0, 1)
    kind = _KINDS[rng.integers(len(_KINDS))]
    return _Clip(torch.tensor(rows), wording(kind, event, rng), answer_of(kind, event), torch.from_numpy(owner_F == asked))


def _draw_events(frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Place one to five events with a frame or more between them; return which of them each frame shows, -1 for none."""
    number = int(rng.integers(1, min(len(SHAPES), frames // 3) + 1))
    lengths = rng.integers(1, min(frames // number, _LONGEST_EVENT + 1), number)
    gaps = np.sort(rng.choice(frames - int(lengths.sum()), number, replace=False))
    starts = gaps + np.cumsum(lengths) - lengths
    owner_F = np.full(frames, -1)
    for e in range(number):
        owner_F[starts[e] : starts[e] + lengths[e]] = e
    return owner_F


def _clip_loss(small: SmallModel, clips: list[_Clip], features_BnC: Tensor, frames: int) -> Tensor:
    """Return the loss of the answers plus that of the retrieval scores."""
    tokenizer, decoder = small.tokenizer, small.model.model.language_model
    prefix = tokenizer.encode(small.prompts.prefix)
    prompts = [tokenizer.encode(small.prompts.open_ended(clip.question)) for clip in clips]
    answers = [[*tokenizer.encode(clip.answer), tokenizer.end] for clip in clips]
    batch = pack(decoder, prefix, list(features_BnC), prompts, answers)
    output = answer_loss(decoder, small.model.lm_head, batch, hidden_states=True)

    text_start = len(prefix) + features_BnC.shape[1]
    asked = torch.tensor([len(tokenizer.encode(clip.question)) for clip in clips])
    asks_Bn = torch.arange(batch.embeds_BnC.shape[1] - text_start) < asked[:, None]
    holds_BF = torch.stack([clip.holds_F for clip in clips])
    retrieval = torch.zeros(())
    for layer, inputs in zip(decoder.layers, output.hidden_states, strict=False):
        scores_BF = _scores(layer, inputs, len(prefix), text_start, frames, asks_Bn)
        retrieval = retrieval + _retrieval_loss(scores_BF, holds_BF)
    return output.loss + _RETRIEVAL_WEIGHT * retrieval / len(decoder.layers)


def _scores(layer: Any, inputs_BnC: Tensor, prefix: int, text_start: int, frames: int, asks_Bn: Tensor) -> Tensor:
    """Return what ``selection.frame_scores`` gives in a layer, [B, F], with gradients."""
    attention, width = layer.self_attn, layer.self_attn.head_dim
    normal_BnC = layer.input_layernorm(inputs_BnC)
    text_BnC = normal_BnC[:, text_start:]
    share_Bn1 = (asks_Bn / asks_Bn.sum(dim=1, keepdim=True)).unsqueeze(-1)
    query_BC = (attention.q_proj(text_BnC) * share_Bn1).sum(dim=1)
    keys_BFC = attention.k_proj(normal_BnC[:, prefix:text_start]).unflatten(1, (frames, -1)).mean(dim=2)
    groups = keys_BFC.shape[-1] // width
    query_BGD = query_BC.view(len(query_BC), groups, -1, width).sum(dim=2)
    return torch.einsum("bfc,bc->bf", keys_BFC, query_BGD.flatten(1)) / math.sqrt(width)


def _retrieval_loss(scores_BF: Tensor, holds_BF: Tensor) -> Tensor:
    """Every frame that holds the answer against all that do not."""
    others_B1 = scores_BF.masked_fill(holds_BF, -torch.inf).logsumexp(dim=1, keepdim=True)
    loss_BF = torch.nn.functional.softplus(others_B1 - scores_BF)
    return loss_BF[holds_BF].mean()


def _report(said: Progress, callback: Callable[[Progress], None] | None) -> None:
    logger.info("stage=%s step=%d/%d loss=%.4f", said.stage, said.step, said.steps, said.loss)
    if callback is not None:
        callback(said)


def _patches(tower: Any, pixels_B3HW: Tensor) -> Tensor:
    """Return the tower's output [B, P, C] at the layer that the projector takes."""
    patches: Tensor = tower(pixels_B3HW, output_hidden_states=True).hidden_states[-1]
    return patches


def _optimiser(parameters: list[nn.Parameter], rate: float, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / _WARMUP)
        return warm * (_LAST_FACTOR + (1 - _LAST_FACTOR) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _update(loss: Tensor, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer, scheduler: Any) -> float:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
    optimiser.step()
    scheduler.step()
    return loss.item()
