"""The small recipe: a video-language model that answers about films of shapes, trained from nothing on one CPU core.

Stage ``vision``: the tower learns shape, color, number and light of single frames, and is frozen. Stage ``answers``:
projector and decoder learn to answer from short clips (next-token cross-entropy on the answer, full causal attention), half
of them whole and half as retrieval leaves them, and to score the frames that hold the answer above the others in every layer:
large models do the last unasked, a small one must be told. Everything is a function of the seed.
"""

# B clips, F frames, T tokens per frame, P patches, C hidden size, n tokens, G key/value heads, D head dim, N rendered frames

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.answer_loss import answer_loss, pack
from models.film_training import FramePool, film_stage, label_heads, render_pool, tower_stage
from models.films import COLORS, COUNTS, PLURALS, SHAPES, SIDE, TIMES, Event, answer_of, make_film, wording
from models.rekv.evaluate import film_quality
from models.rekv.header import SMALL_WEIGHTS, read_small
from models.rekv.loaders import load_model
from models.rekv.small import SMALL_PROMPTS, SmallModel, build_small, save_small
from models.rekv.vision import FrameEncoder
from models.standing.recipe import RECIPE, run_matcher_recipe
from models.tokenizers import WordTokenizer
from models.training import Stage, Training, TrainResult

__all__ = ["RECIPES", "FilmsSchedule", "film_tokenizer", "run_recipe", "train_films"]

RECIPES = ("shapes", RECIPE)
"""Ready recipes by name."""

_KINDS = ("color", "shape", "when", "count")
_RETRIEVAL_WEIGHT = 0.5
_FIRST_LONGEST, _LONGEST_EVENT = 6, 10  # frames
_GATHERED_FROM = 3  # frames of the clip for each that is left
_INITIAL_STD = 0.1  # about 1 / sqrt(hidden size); with the library's 0.02 attention stays flat for hundreds of steps


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


def run_recipe(training: Training, recipe: str, seed: int, schedule: FilmsSchedule | None = None) -> TrainResult:
    """Train a recipe, write ``<recipe>.safetensors`` and measure it on unseen films."""
    if recipe == RECIPE:
        return _train_beside(training, seed)
    schedule = schedule or FilmsSchedule()
    settings = {"method": "rekv", "recipe": recipe, "seed": seed, "schedule": dataclasses.asdict(schedule)}
    if (complete := training.open(settings)) is not None:
        return complete
    small, weights = train_films(seed=seed, schedule=schedule, training=training), training.path / f"{recipe}.safetensors"
    save_small(small, weights)
    # Training draws single frames, not films, so films of every seed are unseen.
    films = (make_film(number) for number in range(schedule.unseen_films))
    quality = film_quality(load_model(weights, small.rekv), small.rekv, films)
    metrics = {f"accuracy_{mode}": value for mode, value in quality.accuracy.items()}
    metrics |= {"accuracy_guess": quality.guess, "retrieval_recall": quality.recall, "questions": float(quality.questions)}
    return training.finish(weights, metrics)


def _train_beside(training: Training, seed: int) -> TrainResult:
    """Train the matcher of standing questions beside the small model that comes with the package."""
    model = load_model(SMALL_WEIGHTS, read_small(SMALL_WEIGHTS)[0])
    decoder, frames = model.decoder, model.frames
    assert frames is not None
    return run_matcher_recipe(
        training,
        "rekv",
        seed,
        frames=frames,
        words=lambda text: decoder.embed(model.ids(text)),
        words_VW=decoder.module.get_input_embeddings().weight.detach(),  # type: ignore[operator]
    )


def train_films(*, seed: int = 0, schedule: FilmsSchedule | None = None, training: Training | None = None) -> SmallModel:
    """Train a small model from nothing. About ten minutes on one core with the default schedule."""
    schedule, training = schedule or FilmsSchedule(), training or Training()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = build_small(film_tokenizer(), SIDE)
        rng = np.random.default_rng([seed, 7])
        pool = render_pool(schedule.variants, rng)
        width = small.model.config.vision_config.hidden_size
        heads = label_heads(pool, width)
        training.run(_vision_stage(small, heads, pool, schedule, rng))
        small.model.model.vision_tower.eval().requires_grad_(False)
        training.run(_answers_stage(small, heads, pool, schedule, rng))
    small.model.eval().requires_grad_(False)
    return small


def film_tokenizer() -> WordTokenizer:
    """Return a tokenizer of every word of the questions, answers and prompts."""
    rng = np.random.default_rng(0)
    event = Event("circle", "red", "one", "at noon", 0, 1)
    texts = [*SHAPES, *PLURALS.values(), *COLORS, *COUNTS, *TIMES, SMALL_PROMPTS.prefix, SMALL_PROMPTS.suffix]
    # Wordings are drawn; twenty draws of each kind leave none out.
    texts += [wording(kind, event, rng) for kind in _KINDS for _ in range(20)]
    return WordTokenizer.of(texts)


def _vision_stage(
    small: SmallModel, heads: nn.ModuleDict, pool: FramePool, schedule: FilmsSchedule, rng: np.random.Generator
) -> Stage:
    """Teach the tower to tell what a frame shows."""
    tower = small.model.model.vision_tower
    pixels = FrameEncoder.of(small.model, "llava_onevision").pixels
    return tower_stage(
        tower,
        lambda frames_BHW3: _patches(tower, pixels(frames_BHW3)),
        heads,
        pool,
        steps=schedule.vision_steps,
        batch=schedule.vision_batch,
        rate=schedule.vision_rate,
        rng=rng,
        kept=nn.ModuleList([small.model, heads]),
    )


def _answers_stage(
    small: SmallModel, heads: nn.ModuleDict, pool: FramePool, schedule: FilmsSchedule, rng: np.random.Generator
) -> Stage:
    """Teach projector and decoder to answer from clips put together of rendered frames."""
    core = small.model.model
    pixels = FrameEncoder.of(small.model, "llava_onevision").pixels
    with torch.no_grad():
        chunks = [_patches(core.vision_tower, pixels(part)) for part in torch.split(pool.frames_NHW3, 512)]
    patches_NPC = torch.cat(chunks)
    trained = nn.ModuleList([core.multi_modal_projector, core.language_model])
    for parameter in trained.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=_INITIAL_STD)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        grown = min(1.0, 2 * (step + 1) / schedule.answer_steps)
        longest = round(_FIRST_LONGEST + (schedule.most_frames - _FIRST_LONGEST) * grown)
        gathered = bool(rng.random() < schedule.gathered)
        most = min(longest, small.rekv.retrieve_frames) if gathered else longest
        frames = int(rng.integers(schedule.least_frames, most + 1))
        clips = [_clip(pool, frames, rng, gathered=gathered) for _ in range(schedule.answer_batch)]
        rows_BF = torch.stack([clip.rows_F for clip in clips])
        features = core.apply_pooling(core.multi_modal_projector(patches_NPC[rows_BF.flatten()]))
        yield _clip_losses(small, clips, features.reshape(len(clips), -1, features.shape[-1]), frames)

    return film_stage(
        "answers", schedule.answer_steps, schedule.answer_rate, trained, losses, rng, kept=nn.ModuleList([small.model, heads])
    )


@dataclass(slots=True, eq=False)
class _Clip:
    rows_F: Tensor
    """Rows of the pool."""
    question: str
    answer: str
    holds_F: Tensor
    """True for the frames that show the event asked about."""


def _clip(pool: FramePool, frames: int, rng: np.random.Generator, *, gathered: bool) -> _Clip:
    """Draw one to five events of different shapes and colors among empty frames, and a question about one of them.

    ``gathered``: what retrieval leaves of a longer clip: the event asked about, frames of others, and then empty ones.
    """
    owner_F = _draw_events(_GATHERED_FROM * frames if gathered else frames, rng)
    length, number = len(owner_F), int(owner_F.max()) + 1
    shapes, colors = rng.permutation(len(SHAPES)), rng.permutation(len(COLORS))
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
        (int(shapes[e]) + 1, int(colors[e]) + 1, int(counts[e]), int(t)) if e >= 0 else (0, 0, 0, int(t))
        for e, t in zip(owner_F, time_F, strict=True)
    ]
    rows = [int(pool.rows[key][rng.integers(len(pool.rows[key]))]) for key in keys]
    event = Event(SHAPES[shapes[asked]], list(COLORS)[colors[asked]], COUNTS[counts[asked] - 1], time, 0, 1)
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


def _clip_losses(small: SmallModel, clips: list[_Clip], features_BnC: Tensor, frames: int) -> dict[str, Tensor]:
    """Return the loss of the answers and that of the retrieval scores."""
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
    return {"answers": output.loss, "retrieval": _RETRIEVAL_WEIGHT * retrieval / len(decoder.layers)}


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


def _patches(tower: Any, pixels_B3HW: Tensor) -> Tensor:
    """Return the tower's output [B, P, C] at the layer that the projector takes."""
    patches: Tensor = tower(pixels_B3HW, output_hidden_states=True).hidden_states[-1]
    return patches
