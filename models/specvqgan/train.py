"""Training of SpecVQGAN: the small recipe, or codebook and vocoder on own sound. What ``streambank train specvqgan`` calls.

Writes a folder that the operators load: one safetensors file per network. Knows no files of sound: it takes rows of ``pcm``.
"""

# N samples, T mel frames

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from connectors.records import PCM, require
from models.devices import resolve_device
from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.checkpoint import save
from models.specvqgan.config import COLUMN_FRAMES, HOP, AutoencoderConfig, VocoderConfig
from models.specvqgan.discriminator import Discriminator
from models.specvqgan.evaluate import codec_quality
from models.specvqgan.loaders import load_networks
from models.specvqgan.preview import pieces_of, show_codec, show_waves
from models.specvqgan.recipe import RECIPES, BouncesSchedule, run_recipe
from models.specvqgan.resample import ResampleStream, mono
from models.specvqgan.sounds import SoundSet
from models.specvqgan.stages import (
    AutoencoderSchedule,
    VocoderSchedule,
    autoencoder_stage,
    fold_weights,
    start_codebook,
    start_with_silence,
    vocoder_stage,
    with_weight_norm,
)
from models.specvqgan.vocoder import Vocoder
from models.specvqgan.wave_discriminator import WaveDiscriminator
from models.training import (
    OwnDataOptions,
    PreviewOptions,
    Progress,
    ProgressCallback,
    Training,
    TrainResult,
    check_choice,
    data_checksum,
    one_thread,
)

__all__ = ["OWN_DATA", "RECIPES", "ROWS_FROM", "BouncesSchedule", "Options", "Progress", "TrainResult", "train"]

OWN_DATA = ("data", "own sound: codebook and vocoder")
"""The option that brings one's own data, and what it is called in the help."""
ROWS_FROM = "audio"
"""The source that reads ``data`` where it is a path."""
_FREE = ("data", "preview_every")
"""Options that may change before a training goes on."""


@dataclass(frozen=True, kw_only=True)
class Options(PreviewOptions, OwnDataOptions):
    """What can be set for one's own sound."""

    data: str = option(
        REQUIRED, "Sound or video files: a file, folder or glob; or any source of `pcm` rows, {type: NAME, …}.", path=True
    )
    start: str | None = option(
        None, "Folder with an autoencoder to go on from; its sizes count. Default: random weights.", path=True
    )
    channels: int = option(32, "Of the autoencoder's first level (published: 128).", ge=32)
    multipliers: list[int] = option([1, 1, 1, 1, 2], "Of the five levels (published: 1, 1, 2, 2, 4).")
    blocks: int = option(1, "Residual blocks of a level (published: 2).", ge=1)
    z_channels: int = option(64, "Between encoder and quantizer (published: 256).", ge=1)
    code_width: int = option(16, "Numbers of a code (published: 256).", ge=1)
    codes: int = option(1024, "Codes; 1024 are 269 bit/s, 128 are 188.", ge=2)
    columns: int = option(8, "Columns of a piece of sound, 0.19 s each (published: 53).", ge=1)
    batch: int = option(2, "Pieces per update.", ge=1)
    plain_steps: int = option(500, "Updates without the codebook, which then begins with what the encoder says.", ge=0)
    steps: int = option(1000, "Updates with the codebook.", unit="updates", ge=1)
    disc_start: int = option(800, "Updates with the codebook before the discriminator counts.", unit="updates", ge=0)
    adaptive: bool = option(False, "Balance the discriminator's gradient; else its weight is 0.8, as published.")
    learning_rate: float = option(5e-4, "Of autoencoder and discriminator.", gt=0)
    vocoder_steps: int = option(2000, "Updates of the vocoder; 0: none is trained.", unit="updates", ge=0)
    vocoder_disc_start: int = option(1500, "Updates before its discriminators count; until then spectra.", ge=0)
    vocoder_spectral: float = option(1.0, "Weight of the distance of spectra from then on (published: 0).", ge=0)
    vocoder_channels: int = option(16, "Of its last stage (published: 32).", ge=1)
    vocoder_batch: int = option(8, "Pieces of 0.37 s per update.", ge=1)
    vocoder_rate: float = option(1e-3, "Of the vocoder (published: 1e-4).", gt=0)
    validation: float = option(0.1, "Share of every sound, its end, that is held out to report on.", gt=0, lt=1)


def train(
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    schedule: BouncesSchedule | None = None,
    rows: Iterable[pa.RecordBatch] | None = None,
    **options: Any,
) -> TrainResult:
    """Train networks and write them into a folder in ``out``.

    Either ``recipe="bounces"`` (``schedule`` replaces its lengths): all of them, into ``bounces``. Or ``rows`` of sound with
    any field of :class:`Options` (``data`` is then only a name): codebook and vocoder, into ``model``.

    ``resume``: go on from the folder's checkpoint if there is one; a complete training is returned as it is. Raises
    ``ConfigError`` for sound that cannot be learned from, ``CheckpointMismatch``, ``DeviceError``.
    """
    check_choice(recipe, options, recipes=RECIPES, options_type=Options, own_data=OWN_DATA[0], trial=("schedule", schedule))
    with one_thread():
        if recipe is not None:
            return run_recipe(Training(Path(out), resume=resume, progress=progress), recipe, seed, schedule)
        own = Options(seed=seed, **options)
        if rows is None:
            raise ConfigError("data is a name only: give rows, batches of the schema pcm (the command line reads the files)")
        every = {"checkpoint_every": own.checkpoint_every, "preview_every": own.preview_every}
        return _train(own, rows, Training(Path(out), resume=resume, progress=progress, **every))


def read_sounds(rows: Iterable[pa.RecordBatch]) -> list[Tensor]:
    """Return the sounds of ``pcm`` rows at 22,050 Hz, mono: one per stream, a new one behind every gap or change of rate."""
    sounds: list[Tensor] = []
    current: dict[str, tuple[ResampleStream, list[Tensor], int]] = {}

    def end(stream_id: str) -> None:
        stream, parts, _ = current.pop(stream_id)
        sounds.append(torch.cat([*parts, stream.finish()]))

    for batch in rows:
        require(batch, PCM, "train specvqgan")
        names = ("stream_id", "sequence", "sample_rate", "channels", "error")
        columns = [batch.column(name).to_pylist() for name in names]
        samples = batch.column("samples")
        for row, (stream_id, sequence, rate, channels, error) in enumerate(zip(*columns, strict=True)):
            held = current.get(stream_id)
            bad = error is not None or not rate or not channels
            if held is not None and (bad or held[0].rate != rate or held[2] != sequence):
                end(stream_id)
                held = None
            if bad or not samples[row].is_valid:
                continue
            values_NC = torch.from_numpy(np.array(samples[row].values, np.int16).reshape(-1, channels))
            if held is None:
                held = (ResampleStream(rate), [], sequence)
            held[1].append(held[0].push(mono(values_NC)))
            current[stream_id] = (held[0], held[1], sequence + len(values_NC))
    for stream_id in list(current):
        end(stream_id)
    return sounds


class _Networks(nn.Module):
    def __init__(self, options: Options) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            if options.start is None:
                self.autoencoder = Autoencoder(
                    AutoencoderConfig(
                        channels=options.channels,
                        multipliers=tuple(options.multipliers),
                        blocks=options.blocks,
                        z_channels=options.z_channels,
                        code_width=options.code_width,
                        codes=options.codes,
                    )
                )
                start_with_silence(self.autoencoder)
            else:
                held = load_networks(options.start, ("autoencoder",)).autoencoder
                assert held is not None
                self.autoencoder = held.requires_grad_(True)
            self.judge = Discriminator()
            self.vocoder = with_weight_norm(Vocoder(VocoderConfig(channels=options.vocoder_channels)))
            self.wave_judge = WaveDiscriminator(max(1, options.vocoder_channels // 2))  # as published: 32 and 16


def _train(options: Options, rows: Iterable[pa.RecordBatch], training: Training) -> TrainResult:
    device = resolve_device(options.device, "training")
    autoencoder = AutoencoderSchedule(
        plain_steps=options.plain_steps if options.start is None else 0,
        steps=options.steps,
        disc_start=options.disc_start,
        batch=options.batch,
        columns=options.columns,
        rate=options.learning_rate,
        adaptive=options.adaptive,
    )
    vocoder = VocoderSchedule(
        steps=options.vocoder_steps,
        disc_start=options.vocoder_disc_start,
        spectral=options.vocoder_spectral,
        batch=options.vocoder_batch,
        rate=options.vocoder_rate,
    )
    frames = options.columns * COLUMN_FRAMES
    least = max(frames, vocoder.samples // HOP)
    sounds, held = SoundSet.of(read_sounds(rows), least, normalize=True).split(options.validation, least)
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(Options) if field.name not in _FREE}
    fingerprint = data_checksum(sound_N.numpy() for sound_N in sounds.samples)
    if (complete := training.open({"method": "specvqgan", "recipe": None, **settings, "fingerprint": fingerprint})) is not None:
        return complete
    networks = _Networks(options).to(device)
    generator = torch.Generator().manual_seed(options.seed)
    shown = pieces_of(held.mels, frames)

    def mels(batch: int) -> Tensor:
        return sounds.draw_mels(batch, frames, generator).to(device)

    def stages() -> Iterator[bool]:
        if autoencoder.plain_steps:
            yield False
        if options.start is None:
            start_codebook(networks.autoencoder, lambda: mels(8), generator)
        yield True

    for coded in stages():
        training.run(
            autoencoder_stage(
                networks.autoencoder,
                networks.judge,
                lambda: mels(options.batch),
                autoencoder,
                generator,
                networks,
                coded=coded,
                preview=partial(show_codec, networks.autoencoder, shown, coded=coded),
            )
        )
    metrics = {"seconds_of_sound": sounds.seconds, "sounds": float(len(sounds.samples)), "codec_loss": training.last_loss}
    if options.vocoder_steps:

        def waves() -> tuple[Tensor, Tensor]:
            mel_BHT, real_BN = sounds.draw_waves(vocoder.batch, vocoder.samples, generator, gain=True)
            return mel_BHT.to(device), real_BN.to(device)

        training.run(
            vocoder_stage(
                networks.vocoder,
                networks.wave_judge,
                waves,
                vocoder,
                generator,
                networks,
                preview=partial(show_waves, networks.vocoder, shown),
            )
        )
        metrics["vocoder_loss"] = training.last_loss
    networks.eval().requires_grad_(False).cpu()
    folder = training.path / "model"
    folder.mkdir(exist_ok=True)
    save(networks.autoencoder, folder / "autoencoder.safetensors")
    if options.vocoder_steps:
        save(fold_weights(networks.vocoder), folder / "vocoder.safetensors")
    mean_H = torch.cat(sounds.mels, 1).mean(1)
    return training.finish(folder, metrics | codec_quality(networks.autoencoder, held.mels, mean_H, options.columns))
