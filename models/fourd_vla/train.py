"""Training of the 4D-VLA policy: on own demonstrations, or a small recipe. What ``streambank train fourd_vla`` calls.

The losses of the paper, AdamW, cosine. Writes safetensors that the operator loads, and ``training.json``. Knows no stream.
"""

# R rows, B samples, K frames kept

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from models.devices import resolve_device
from models.fourd_vla.checkpoint import Policy, load_policy, save_policy
from models.fourd_vla.config import DecoderConfig, FourDVLAConfig, VisionConfig
from models.fourd_vla.demonstrations import Demonstrations, read_demonstrations
from models.fourd_vla.encoders import ColorGrid
from models.fourd_vla.losses import action_losses
from models.fourd_vla.model import Actions, FourDVLA
from models.fourd_vla.preview import show_path
from models.fourd_vla.recipe import RECIPES, SmallSchedule, run_recipe
from models.fourd_vla.sampling import last_k, likeness, uniform, window
from models.tokenizers import WordTokenizer
from models.training import (
    OwnDataOptions,
    Picture,
    PreviewOptions,
    Progress,
    ProgressCallback,
    Stage,
    Training,
    TrainResult,
    check_choice,
    cosine,
    data_checksum,
    one_thread,
    warm_up,
)

__all__ = ["OWN_DATA", "RECIPES", "Options", "Progress", "SmallSchedule", "TrainResult", "train"]

OWN_DATA = ("data", "own demonstrations")
"""The option that brings one's own data, and what it is called in the help."""

_FREE = ("data", "preview_every")
"""Options that may change before a training goes on."""
_SHOWN = 200  # moves of an episode in a preview
_GRADIENT_NORM = 1.0
_WARMUP, _LAST_FACTOR = 50, 0.02


@dataclass(frozen=True, kw_only=True)
class Options(PreviewOptions, OwnDataOptions):
    """What can be set for one's own data."""

    data: str = option(
        REQUIRED,
        "Parquet file or folder of rgbd rows with columns action (7 numbers), instruction, episode, state; folder of a LeRobot "
        "data set; or a source as in a pipeline file, such as '{type: lerobot, path: set/, camera: [615, 615, 320, 240]}'.",
        path=True,
    )
    start: str | None = option(
        None, "Policy of words to go on from, one file; without it a small policy of random weights.", path=True
    )
    width: int = option(112, "Frames are scaled to this width, a multiple of twice the patch.", unit="px", ge=16)
    height: int = option(64, "Frames are scaled to this height, a multiple of twice the patch.", unit="px", ge=16)
    patch: int = option(8, "Side of a patch.", unit="px", ge=4)
    hidden: int = option(64, "Width of encoder and decoder, a multiple of 8.", ge=8)
    layers: int = option(2, "Layers of each.", ge=1)
    coordinates: bool = option(True, "False: without 3D coordinates, for comparison.")
    state_dim: int = option(0, "Numbers of the column state that the policy takes; 0: none.", ge=0)
    window: int = option(20, "Frames of history, the current one included.", unit="frames", ge=1)
    keep: int = option(5, "Frames kept of it.", unit="frames", ge=1)
    sampling: Literal["window", "uniform", "last_k"] = option("window", "How they are chosen, as by the operator.")
    steps: int = option(2000, "Updates.", ge=1)
    batch: int = option(32, "Samples per update.", ge=1)
    learning_rate: float = option(1e-3, "Of AdamW; warm-up of 50 updates, then cosine.", gt=0)
    validation: float = option(0.1, "Share of the episodes, the last ones, that is held out.", ge=0, lt=1)


def train(
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    schedule: SmallSchedule | None = None,
    rows: Iterable[pa.RecordBatch] | None = None,
    **options: Any,
) -> TrainResult:
    """Train a policy and write it into the folder ``out``.

    Either ``recipe`` (a name of ``RECIPES``; ``schedule`` replaces its length): writes ``<recipe>.safetensors`` and the same
    policy without what is to help as ``<recipe>_control.safetensors``. Or ``data=PATH`` with any other field of
    :class:`Options`: writes ``policy.safetensors``. ``rows``: what is read in place of the file ``data``, which then is a name.

    ``resume``: go on from the folder's checkpoint if there is one; a complete training is returned as it is. Raises
    ``ConfigError``, ``DeviceError``.
    """
    check_choice(recipe, options, recipes=RECIPES, options_type=Options, own_data=OWN_DATA[0], trial=("schedule", schedule))
    if recipe is None:
        own = Options(seed=seed, **options)
        every = {"checkpoint_every": own.checkpoint_every, "preview_every": own.preview_every}
        return _train(own, rows, Training(Path(out), resume=resume, progress=progress, **every))
    with one_thread():
        return run_recipe(Training(Path(out), resume=resume, progress=progress), recipe, seed, schedule)


def _train(options: Options, rows: Iterable[pa.RecordBatch] | None, training: Training) -> TrainResult:
    device = resolve_device(options.device, "training")
    start = load_policy(options.start) if options.start is not None else None
    config = start.model.config if start is not None else _config(options)
    data = read_demonstrations(options.data, config, rows)
    train_R, held_R = _split(data, options.validation)
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(Options) if field.name not in _FREE}
    fingerprint = data_checksum([data.action_R7.numpy(), data.share_RP.numpy()])
    if (complete := training.open({"method": "fourd_vla", **settings, "fingerprint": fingerprint})) is not None:
        return complete
    if start is None:
        tokenizer = WordTokenizer.of(data.instruction)
        decoder = dataclasses.replace(config.decoder, vocabulary=len(tokenizer.words))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            policy = Policy(FourDVLA(dataclasses.replace(config, decoder=decoder, action_scale=data.scale())), tokenizer)
    else:
        policy = start
    model = policy.model.to(device).requires_grad_(True)
    generator = torch.Generator().manual_seed(options.seed)
    grid = ColorGrid(9, 16)
    feature_RD = torch.cat([grid(part) for part in torch.split(data.color_RHW3, 256)])

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        rows_B = train_R[torch.randint(len(train_R), (options.batch,), generator=generator)]
        yield _losses(policy, data, rows_B, _act(policy, data, feature_RD, rows_B, options, device), device)

    def preview() -> Picture:
        rows_R = held_R if len(held_R) else train_R
        rows_R = rows_R[data.first_R[rows_R] == data.first_R[rows_R[0]]][:_SHOWN]

        def said() -> Tensor:
            parts = [_act(policy, data, feature_RD, part, options, device) for part in torch.split(rows_R, 64)]
            return torch.cat([actions.scaled(model.config).cpu() for actions in parts])

        return show_path(model, said, data.action_R7[rows_R])

    training.run(
        Stage(
            name="policy",
            steps=options.steps,
            trained=model.train(),
            optimizer=torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01),
            losses=losses,
            rate=lambda step: options.learning_rate * warm_up(step, _WARMUP) * cosine(step, options.steps, _LAST_FACTOR),
            gradient_norm=_GRADIENT_NORM,
            report_every=max(1, options.steps // 20),
            generators=(generator,),
            preview=preview,
        )
    )
    model.eval().requires_grad_(False)
    weights = training.path / "policy.safetensors"
    save_policy(policy, weights)
    metrics = {"rows": float(len(data)), "rows_bad": float(data.bad), "loss": training.last_loss}
    if len(held_R):
        metrics |= _validate(policy, data, feature_RD, held_R, options, device)
    return training.finish(weights, metrics)


def _config(options: Options) -> FourDVLAConfig:
    if options.hidden % 8:
        raise ConfigError(f"hidden is {options.hidden}; it must be a multiple of 8")
    size, mlp, heads = options.hidden, 2 * options.hidden, max(1, options.hidden // 16)
    while size % heads or (size // heads) % 2:
        heads -= 1
    vision = VisionConfig(
        width=options.width,
        height=options.height,
        patch=options.patch,
        hidden=size,
        layers=options.layers,
        heads=heads,
        mlp=mlp,
        grid=max(options.width, options.height) // options.patch,
    )
    return FourDVLAConfig(
        vision=vision,
        decoder=DecoderConfig(vocabulary=2, hidden=size, layers=options.layers, heads=heads, kv_heads=heads, mlp=mlp),
        offsets=options.window,
        coordinates=options.coordinates,
        octaves=4,
        action_hidden=2 * size,
        state_dim=options.state_dim,
    )


def _split(data: Demonstrations, share: float) -> tuple[Tensor, Tensor]:
    """Return rows to learn from and rows held out: whole episodes, the last ones."""
    firsts = torch.unique_consecutive(data.first_R)
    held = firsts[len(firsts) - int(share * len(firsts)) :]
    is_held_R = torch.isin(data.first_R, held)
    return (~is_held_R).nonzero()[:, 0], is_held_R.nonzero()[:, 0]


def _act(
    policy: Policy, data: Demonstrations, feature_RD: Tensor, rows_B: Tensor, options: Options, device: torch.device
) -> Actions:
    """Choose the frames of each row's past as the operator does, encode them, and ask for actions."""
    model = policy.model
    age_N = torch.arange(options.window)
    length_B = (rows_B - data.first_R[rows_B] + 1).clamp_max(options.window)
    at_BN = (rows_B[:, None] - age_N).clamp_min(0)
    if options.sampling == "window":
        chosen_BN = window(likeness(feature_RD[at_BN]), length_B, options.keep)
    elif options.sampling == "uniform":
        chosen_BN = uniform(length_B, rows_B - data.first_R[rows_B], options.window, options.keep)
    else:
        chosen_BN = last_k(length_B, options.window, options.keep)
    count_B = chosen_BN.sum(1)
    # Oldest first, then padding.
    order_BN = torch.where(chosen_BN, age_N, -1).sort(dim=1, descending=True).values[:, : int(count_B.max())].clamp_min(0)
    rows_N = (rows_B[:, None] - order_BN).flatten()
    color = data.color_RHW3[rows_N].to(device).permute(0, 3, 1, 2)
    features = model.vision_model(model.vision_model.normalize(color))
    tokens = model.spatial_tokens(features, data.coord_RP3[rows_N].to(device), data.share_RP[rows_N].to(device))
    texts = [torch.tensor(policy.tokenizer.encode(data.instruction[row]) or [1]) for row in rows_B.tolist()]
    state = data.state_Rs[rows_B].to(device) if model.config.state_dim else None
    return model.act(tokens.view(*order_BN.shape, *tokens.shape[1:]), order_BN.to(device), count_B.tolist(), texts, state)


def _losses(policy: Policy, data: Demonstrations, rows_B: Tensor, said: Actions, device: torch.device) -> dict[str, Tensor]:
    scale = policy.model.config.action_scale
    wanted = data.action_R7[rows_B].to(device)
    return action_losses(
        said.translation_B3,
        said.rotation_B3,
        said.gripper_B,
        wanted[:, :3] / wanted.new_tensor(scale.translation),
        wanted[:, 3:6] / wanted.new_tensor(scale.rotation),
        wanted[:, 6],
        direction_weight=policy.model.config.direction_weight,
    )


@torch.no_grad()
def _validate(
    policy: Policy, data: Demonstrations, feature_RD: Tensor, rows_R: Tensor, options: Options, device: torch.device
) -> dict[str, float]:
    """Return the mean squared error of held-out actions, the cosine of their directions, and how often the gripper is right."""
    squared, turned, right = [], [], []
    for rows_B in torch.split(rows_R, 64):
        said = _act(policy, data, feature_RD, rows_B, options, device).scaled(policy.model.config).cpu()
        wanted = data.action_R7[rows_B]
        squared.append((said[:, :6] - wanted[:, :6]).square().mean(1))
        moves = wanted[:, :3].norm(dim=1) > 1e-6
        turned.append(torch.cosine_similarity(said[moves, :3], wanted[moves, :3]))
        right.append((said[:, 6] == wanted[:, 6]).float())
    parts = {"held_out_error": squared, "held_out_direction": turned, "held_out_gripper": right}
    return {name: float(torch.cat(values).mean()) for name, values in parts.items() if sum(map(len, values))}
