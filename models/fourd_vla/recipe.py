"""The small recipes: a tiny policy learns a task of rendered scenes in a minute, and the same policy without what is to help.

``point`` is learned with coordinates, and without as its control. ``past``, ``count`` and ``seen`` are learned from the frames
that memory bank sampling keeps; their controls, from as many frames of ``last_k`` and ``uniform`` sampling. Everything is a
function of the seed.
"""

# S samples, T frames of a sample, K frames kept, P patches

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.fourd_vla.checkpoint import Policy, save_policy
from models.fourd_vla.config import ActionScale, DecoderConfig, FourDVLAConfig, VisionConfig
from models.fourd_vla.encoders import ColorGrid
from models.fourd_vla.losses import action_losses
from models.fourd_vla.model import Actions, FourDVLA
from models.fourd_vla.preview import SHOWN, show_answers
from models.fourd_vla.sampling import last_k, likeness, uniform, window
from models.fourd_vla.tasks import TASKS, WORDS, Samples, Task
from models.tokenizers import WordTokenizer
from models.training import Picture, Stage, Training, TrainResult, cosine, warm_up

__all__ = ["RECIPES", "SmallSchedule", "measure", "run_recipe", "small_policy", "train_task"]

RECIPES = TASKS
"""Ready recipes by name."""

Sampling = Literal["window", "last_k", "uniform"]

_GRADIENT_NORM = 1.0
_WARMUP, _LAST_FACTOR = 50, 0.02
_REPORTS = 10
_FRESH = 1 << 20
"""Seeds of fresh samples begin here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallSchedule:
    """Updates, batch and learning rate: AdamW, warm-up, cosine decay."""

    steps: int | None = None
    """None: the task's own."""
    batch: int = 32
    rate: float = 2e-3
    fresh: int = 400
    """Fresh samples that the outcome is measured on."""


def small_policy(task: Task, seed: int, *, coordinates: bool = True) -> Policy:
    """Return a tiny policy with random weights for a task: 2 layers that see, 2 that decide."""
    tokenizer = WordTokenizer.of(WORDS)
    config = FourDVLAConfig(
        vision=VisionConfig(width=task.width, height=task.height, patch=8, hidden=48, layers=2, heads=4, mlp=96, grid=4),
        decoder=DecoderConfig(vocabulary=len(tokenizer.words), hidden=64, layers=2, heads=4, kv_heads=4, mlp=128),
        offsets=max(task.window, 2),
        coordinates=coordinates,
        octaves=4,
        scale_m=0.3,
        action_hidden=64,
        direction_weight=0.3 if task.answers == 0 else 1.0,  # an error in meters is what counts where a place is asked for
        action_scale=ActionScale(translation=(0.3, 0.3, 0.3)) if task.answers == 0 else ActionScale(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FourDVLA(config)
        for name, parameter in model.named_parameters():  # a small network learns faster with whole layers than with a tenth
            if name.endswith((".ls1", ".ls2")):
                torch.nn.init.ones_(parameter)
    return Policy(model, tokenizer)


def run_recipe(training: Training, recipe: str, seed: int, schedule: SmallSchedule | None = None) -> TrainResult:
    """Train a recipe with its first control and measure both on fresh samples; write ``<recipe>.safetensors``."""
    schedule = schedule or SmallSchedule()
    schedule = dataclasses.replace(schedule, steps=schedule.steps or TASKS[recipe].steps)
    settings = {"method": "fourd_vla", "recipe": recipe, "seed": seed, "schedule": dataclasses.asdict(schedule)}
    if (complete := training.open(settings)) is not None:
        return complete
    is_place = TASKS[recipe].answers == 0
    policy = train_task(recipe, seed, schedule, training=training)
    control = train_task(
        recipe, seed, schedule, training=training, coordinates=not is_place, sampling="window" if is_place else "last_k"
    )
    weights, without = training.path / f"{recipe}.safetensors", training.path / f"{recipe}_control.safetensors"
    save_policy(policy, weights)
    save_policy(control, without)
    name = "error_m" if is_place else "right"
    metrics = {
        name: measure(policy, recipe, schedule.fresh, "window"),
        f"{name}_control": measure(control, recipe, schedule.fresh, "window" if is_place else "last_k"),
    }
    return training.finish(weights, metrics, control=without)


def train_task(
    recipe: str,
    seed: int,
    schedule: SmallSchedule,
    *,
    coordinates: bool = True,
    sampling: Sampling = "window",
    training: Training | None = None,
) -> Policy:
    """Train a tiny policy on a task from frames that ``sampling`` keeps; return it for inference."""
    task = TASKS[recipe]
    steps = schedule.steps or task.steps
    policy = small_policy(task, seed, coordinates=coordinates)
    model = policy.model
    generator = torch.Generator().manual_seed(seed)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        samples = task.make(schedule.batch, generator)
        said = _act(policy, samples, task, sampling)
        scale = torch.tensor(model.config.action_scale.translation)
        yield action_losses(
            said.translation_B3,
            said.rotation_B3,
            said.gripper_B,
            samples.move_S3 / scale,
            torch.zeros_like(samples.move_S3),
            samples.grip_S,
            direction_weight=model.config.direction_weight,
        )

    def preview() -> Picture:
        samples = task.make(SHOWN, torch.Generator().manual_seed(_FRESH))
        scale_3 = torch.tensor(model.config.action_scale.translation)
        age_SK = _kept(samples, task, sampling)
        return show_answers(model, lambda: _act(policy, samples, task, sampling), samples, age_SK, task, scale_3)

    stage = Stage(
        name=f"{recipe} {'' if coordinates else 'without coordinates, '}{sampling}",
        steps=steps,
        trained=model.train(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=schedule.rate, weight_decay=0.01),
        losses=losses,
        rate=lambda step: schedule.rate * warm_up(step, _WARMUP) * cosine(step, steps, _LAST_FACTOR),
        gradient_norm=_GRADIENT_NORM,
        report_every=max(1, steps // _REPORTS),
        generators=(generator,),
        preview=preview,
    )
    (training or Training()).run(stage)
    model.eval().requires_grad_(False)
    return policy


@torch.no_grad()
def measure(policy: Policy, recipe: str, count: int, sampling: Sampling) -> float:
    """Return the share of right answers on fresh samples, or the mean distance (m) where a place is asked for."""
    task = TASKS[recipe]
    samples = task.make(count, torch.Generator().manual_seed(_FRESH))
    said = _act(policy, samples, task, sampling)
    scale = torch.tensor(policy.model.config.action_scale.translation)
    move_S3 = said.translation_B3 * scale
    if task.answers == 0:
        return float((move_S3 - samples.move_S3).norm(dim=1).mean())
    return float((task.decode(move_S3, said.gripper_B) == samples.answer_S).float().mean())


def _act(policy: Policy, samples: Samples, task: Task, sampling: Sampling) -> Actions:
    """Choose frames, encode them, and ask for actions."""
    model = policy.model
    age_SK = _kept(samples, task, sampling)
    S, K = age_SK.shape
    frame_SK = samples.color_STHW3.shape[1] - 1 - age_SK
    row_S1 = torch.arange(S)[:, None]
    color_NHW3 = samples.color_STHW3[row_S1, frame_SK].flatten(0, 1)
    features_NPD = model.vision_model(model.vision_model.normalize(color_NHW3.permute(0, 3, 1, 2)))
    coord = share = None
    if model.config.coordinates:
        depth_NHW = samples.depth_STHW[row_S1, frame_SK].flatten(0, 1)
        camera, pose = (matrix.repeat_interleave(K, dim=0) for matrix in (samples.cameras.camera_S33, samples.cameras.pose_S44))
        coord, share = model.coordinates(depth_NHW, depth_NHW > 0, camera, pose)
    tokens = model.spatial_tokens(features_NPD, coord, share)
    texts = [torch.tensor(policy.tokenizer.encode(text)) for text in samples.instruction]
    return model.act(tokens.view(S, K, *tokens.shape[1:]), age_SK, [K] * S, texts)


def _kept(samples: Samples, task: Task, sampling: Sampling) -> Tensor:
    """Return the ages of the frames kept, oldest first, [S, K]."""
    S, T = samples.color_STHW3.shape[:2]
    length_S = torch.full((S,), T)
    if sampling == "window":
        grid = ColorGrid(8, 8)
        feature_STD = grid(samples.color_STHW3.flatten(0, 1)).view(S, T, -1).flip(1)
        chosen_ST = window(likeness(feature_STD), length_S, task.keep)
    elif sampling == "uniform":
        chosen_ST = uniform(length_S, length_S - 1, T, task.keep)
    else:
        chosen_ST = last_k(length_S, T, task.keep)
    return chosen_ST.nonzero()[:, 1].view(S, -1).flip(1)
