"""The small recipe: bouncing balls. Codebook, transformer and vocoder learn from clips that are rendered here.

Every network has its own draws, so that it comes out the same whatever was trained before it. Everything is a function of the
seed.
"""

# M windows

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.bounces import Clip, make_clip
from models.specvqgan.checkpoint import save
from models.specvqgan.config import COLUMN_FRAMES, AutoencoderConfig, TransformerConfig, VocoderConfig
from models.specvqgan.discriminator import Discriminator
from models.specvqgan.evaluate import measure, sounds_in
from models.specvqgan.loaders import load_networks
from models.specvqgan.preview import PIECES, pieces_of, show_codec, show_seen, show_waves
from models.specvqgan.sounds import SoundSet
from models.specvqgan.stages import (
    AutoencoderSchedule,
    TransformerSchedule,
    VocoderSchedule,
    autoencoder_stage,
    fold_weights,
    start_codebook,
    start_in_time,
    start_with_silence,
    transformer_stage,
    vocoder_stage,
    with_weight_norm,
)
from models.specvqgan.transformer import SoundTransformer
from models.specvqgan.vision import PixelConfig, PixelFeatures
from models.specvqgan.vocoder import Vocoder
from models.specvqgan.wave_discriminator import WaveDiscriminator
from models.specvqgan.windows import COLUMN_ROWS, WindowSet
from models.training import Training, TrainResult

__all__ = ["RECIPES", "BouncesSchedule", "run_recipe"]

RECIPES = ("bounces",)
"""Ready recipes by name."""

COLUMNS = 8
"""Columns of the small transformer's window: 1.49 s."""
CODES = 1024
"""As published: 269 bit/s."""

AUTOENCODER = AutoencoderConfig(channels=32, multipliers=(1, 1, 1, 1, 2), blocks=1, z_channels=64, code_width=16, codes=CODES)
FEATURES = PixelConfig(side=8)
TRANSFORMER = TransformerConfig(
    codes=CODES,
    layers=3,
    heads=4,
    width=96,
    features=COLUMNS * COLUMN_ROWS,
    feature_width=3 * FEATURES.side**2,
    columns=COLUMNS,
)
VOCODER = VocoderConfig(channels=8, residual_blocks=2)

_FRESH = 1 << 40
"""Seed of the first clip that no training draws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BouncesSchedule:
    """How much each network learns from, and how long."""

    clips: int = 200
    """Whose sounds codebook and vocoder learn."""
    seen_clips: int = 440
    """Whose windows the transformer learns, but for a tenth that is held out."""
    windows: int = 12
    """Of each clip."""
    autoencoder: AutoencoderSchedule = field(default_factory=AutoencoderSchedule)
    transformer: TransformerSchedule = field(default_factory=TransformerSchedule)
    vocoder: VocoderSchedule = field(default_factory=VocoderSchedule)
    measured: int = 12
    """Fresh clips that the outcome is measured on."""
    clip_s: float = 6.0


class Networks(nn.Module):
    """All that is trained together with what it is trained against."""

    def __init__(self, seed: int, schedule: BouncesSchedule) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.autoencoder = Autoencoder(AUTOENCODER)
            start_with_silence(self.autoencoder)
            self.judge = Discriminator(32)
            torch.manual_seed(seed + 1)
            self.transformer = SoundTransformer(TRANSFORMER)
            start_in_time(self.transformer, torch.Generator().manual_seed(seed))
            torch.manual_seed(seed + 2)
            self.vocoder = with_weight_norm(Vocoder(VOCODER))
            self.wave_judge = WaveDiscriminator(schedule.vocoder.disc_channels)
        self.features = PixelFeatures(FEATURES)


def run_recipe(training: Training, recipe: str, seed: int, schedule: BouncesSchedule | None = None) -> TrainResult:
    """Train all three networks and write them into the folder ``<recipe>``, with the figures of fresh clips."""
    schedule = schedule or BouncesSchedule()
    settings = {"method": "specvqgan", "recipe": recipe, "seed": seed, "schedule": dataclasses.asdict(schedule)}
    if (complete := training.open(settings)) is not None:
        return complete
    networks = Networks(seed, schedule)
    sounds = SoundSet.of(_sounds(_clips(seed, schedule.clips, schedule.clip_s)), schedule.autoencoder.columns * COLUMN_FRAMES)
    train_autoencoder(networks, sounds, schedule.autoencoder, training, seed)
    train_transformer(networks, schedule, training, seed)
    train_vocoder(networks, sounds, schedule.vocoder, training, seed)
    folder = training.path / recipe
    write_networks(networks, folder)
    wanted = ("autoencoder", "transformer", "vocoder", "features")
    fresh = [make_clip(_FRESH + number, schedule.clip_s) for number in range(schedule.measured)]
    written = load_networks(folder, wanted)
    return training.finish(folder, measure(written, fresh, sounds_in(written, fresh, seed=seed)))


def train_autoencoder(
    networks: Networks, sounds: SoundSet, schedule: AutoencoderSchedule, training: Training, seed: int
) -> None:
    """Learn spectrograms, then the codebook."""
    generator = torch.Generator().manual_seed(seed)
    model, frames = networks.autoencoder, schedule.columns * COLUMN_FRAMES
    shown = pieces_of(sounds.mels, frames)

    def stage(coded: bool) -> None:
        training.run(
            autoencoder_stage(
                model,
                networks.judge,
                lambda: sounds.draw_mels(schedule.batch, frames, generator),
                schedule,
                generator,
                networks,
                coded=coded,
                preview=partial(show_codec, model, shown, coded=coded),
            )
        )

    stage(False)
    start_codebook(model, lambda: sounds.draw_mels(8, frames, generator), generator)
    stage(True)
    model.eval()


def train_transformer(networks: Networks, schedule: BouncesSchedule, training: Training, seed: int) -> None:
    """Learn to tell tokens by what is seen."""
    generator = torch.Generator().manual_seed(seed + 1)
    clips = list(_clips(seed + 1, schedule.seen_clips, schedule.clip_s))
    held = max(1, len(clips) // 10)

    def windows_of(some: list[Clip]) -> WindowSet:
        model, features = networks.autoencoder, networks.features
        return WindowSet.of(some, model, features, COLUMNS, generator, windows=schedule.windows)

    windows, unseen = windows_of(clips[held:]), windows_of(clips[:held])
    stage = transformer_stage(
        networks.transformer,
        lambda: windows.draw(schedule.transformer.batch, generator),
        schedule.transformer,
        generator,
        networks,
        held_out=lambda: unseen.rows(torch.arange(len(unseen.tokens_MN))),
        # The first window of some clips.
        preview=lambda: show_seen(
            networks.transformer, networks.autoencoder, *unseen.rows(torch.arange(min(held, PIECES)) * schedule.windows)
        ),
    )
    training.run(stage)
    if (best := stage.state["best"]) is not None:  # else it was complete before a stop, and the weights are in the checkpoint
        networks.transformer.load_state_dict(best["weights"])
    networks.transformer.eval()


def train_vocoder(networks: Networks, sounds: SoundSet, schedule: VocoderSchedule, training: Training, seed: int) -> None:
    """Learn waveforms."""
    generator = torch.Generator().manual_seed(seed + 2)
    shown = pieces_of(sounds.mels, COLUMNS * COLUMN_FRAMES)
    training.run(
        vocoder_stage(
            networks.vocoder,
            networks.wave_judge,
            lambda: sounds.draw_waves(schedule.batch, schedule.samples, generator),
            schedule,
            generator,
            networks,
            preview=partial(show_waves, networks.vocoder, shown),
        )
    )
    networks.vocoder.eval()


def write_networks(networks: Networks, folder: Path) -> None:
    """Write a folder that the operators load."""
    folder.mkdir(parents=True, exist_ok=True)
    fold_weights(networks.vocoder)
    for name in ("autoencoder", "transformer", "vocoder", "features"):
        save(getattr(networks, name), folder / f"{name}.safetensors")


def _clips(seed: int, count: int, seconds: float) -> Iterator[Clip]:
    return (make_clip((seed + 1) * 100_000 + number, seconds) for number in range(count))


def _sounds(clips: Iterator[Clip]) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(clip.samples()) for clip in clips)
