"""How the three networks are trained: each a stage of ``models.training`` with the paper's losses (spec 9 and 10).

A generator and its discriminator share one optimizer, and each only gets the gradients of its own loss. What a stage learns
from comes from functions that draw batches; nothing here knows where sounds come from.
"""

# B batch, T mel frames, N tokens or samples, F features, E feature width, D code width, P places

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.config import COLUMN_FRAMES, FEATURE_FRAMES, ROWS
from models.specvqgan.discriminator import Discriminator
from models.specvqgan.losses import (
    autoencoder_loss,
    discriminator_loss,
    feature_matching,
    spectral_distance,
    token_loss,
    wave_discriminator_loss,
    wave_generator_loss,
)
from models.specvqgan.perceptual import PerceptualDistance
from models.specvqgan.transformer import SoundTransformer
from models.specvqgan.vision import picked_rows
from models.specvqgan.vocoder import Vocoder
from models.specvqgan.wave_discriminator import WaveDiscriminator
from models.training import After, Picture, Stage, cosine, warm_up

__all__ = [
    "AutoencoderSchedule",
    "TransformerSchedule",
    "VocoderSchedule",
    "autoencoder_stage",
    "fold_weights",
    "start_codebook",
    "start_in_time",
    "start_with_silence",
    "transformer_stage",
    "vocoder_stage",
    "with_weight_norm",
]

_WARMUP, _LAST_FACTOR = 20, 0.05
_REPORTS = 20
_GAN_BETAS, _TOKEN_BETAS = (0.5, 0.9), (0.9, 0.95)
_WEIGHT_DECAY = 0.01
_FEATURE_MATCHING = 10.0
_EMBEDDED = 0.5

Draw = Callable[[], Tensor]
Show = Callable[[], Picture]


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderSchedule:
    """Updates, batch and rate of the codebook autoencoder, and when its discriminator comes in."""

    plain_steps: int = 300
    """Without the codebook, which then begins with what the encoder says."""
    steps: int = 700
    disc_start: int = 640
    """Updates with the codebook before the discriminator counts; in the published configurations 30,001 or 2,001."""
    batch: int = 1
    columns: int = 8
    """Of a piece of sound."""
    rate: float = 1e-3
    perceptual: float = 0.0
    """Weight of LPAPS. The published weight of 1 went to a network whose weights had failed to load."""
    adaptive: bool = False
    """Balance both gradients at the decoder's last layer; the published configurations keep the weight at 0.8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerSchedule:
    """Updates, batch and rate of the transformer, and when it stops."""

    steps: int = 2000
    batch: int = 16
    rate: float = 2e-3
    check_every: int = 100
    """Updates between looks at clips that are held out; the weights that did best there are kept."""
    patience: int = 3
    """Looks without a better one before the stage ends; published: 2 epochs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VocoderSchedule:
    """Updates, batch and rate of the vocoder, and when its discriminators come in."""

    steps: int = 900
    disc_start: int = 840
    """Before that, spectra are compared, which the paper does not do; 0: as published."""
    spectral: float = 1.0
    """Weight of the distance of spectra from then on; 0: as published."""
    batch: int = 4
    samples: int = 8192
    """Of a piece."""
    rate: float = 1e-3
    disc_channels: int = 4
    """Of the discriminators' first layer; published: 16."""
    disc_rate: float = 1e-4


def start_with_silence(model: Autoencoder) -> None:
    """Let the decoder begin with silence: most of a spectrogram is, and hundreds of updates would go into learning it."""
    nn.init.normal_(model.decoder.conv_out.weight, 0.0, 0.01)
    assert model.decoder.conv_out.bias is not None
    nn.init.constant_(model.decoder.conv_out.bias, -1.0)


@torch.no_grad()
def start_codebook(model: Autoencoder, draw: Draw, generator: torch.Generator) -> None:
    """Let the codes begin as places of encoded sound, drawn without replacement, so that none begins far from all sound."""
    codes = model.config.codes
    places: list[Tensor] = []
    while sum(len(part) for part in places) < 2 * codes:
        places.append(model.encode_map(draw()).permute(0, 2, 3, 1).flatten(0, 2))
    place_PD = torch.cat(places)
    model.codes_KD.copy_(place_PD[torch.randperm(len(place_PD), generator=generator)[:codes]])


@torch.no_grad()
def start_in_time(model: SoundTransformer, generator: torch.Generator) -> None:
    """Let a small transformer begin with positions that tell times, and with weights of the size that its width asks for.

    Features and tokens of one moment begin with the same waves, so that what is seen is soon found beside what is heard; from
    zeros, as published, every pair of positions is learned on its own. A network of this width hardly moves from 0.02.
    """
    config, blocks = model.config, list(model.blocks)
    for block in blocks:
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear):
                size = layer.in_features**-0.5 * ((2 * len(blocks)) ** -0.5 if name in ("attn.proj", "mlp.2") else 1.0)
                layer.weight.normal_(0.0, size, generator=generator)
    model.tok_emb.weight.normal_(0.0, _EMBEDDED, generator=generator)
    rows = config.columns * COLUMN_FRAMES // FEATURE_FRAMES
    seen_F = torch.tensor(picked_rows(rows, config.features)) + 0.5
    heard_N = (torch.arange(config.tokens) // ROWS + 0.5) * rows / config.columns
    waves = config.width // 4
    turn_W = 2 * math.pi / (4.0 * (rows / 2) ** (torch.arange(waves) / max(1, waves - 1)))  # periods of 4 rows to two windows
    turned_PW = torch.cat([seen_F, heard_N])[:, None] * turn_W
    model.pos_emb[0, :, : 2 * waves] = _EMBEDDED * torch.cat([turned_PW.sin(), turned_PW.cos()], 1)
    kind_RC = torch.empty(ROWS, config.width - 2 * waves).normal_(0.0, _EMBEDDED, generator=generator)
    model.pos_emb[0, config.features :, 2 * waves :] = kind_RC.repeat(config.columns, 1)


def autoencoder_stage(
    model: Autoencoder,
    discriminator: Discriminator,
    draw: Draw,
    schedule: AutoencoderSchedule,
    generator: torch.Generator,
    kept: nn.Module,
    *,
    coded: bool,
    perceptual: PerceptualDistance | None = None,
    preview: Show | None = None,
) -> Stage:
    """Return the stage that learns spectrograms: first without (``coded=False``), then with the codebook.

    ``draw`` gives spectrograms [B, 1, 80, T] in [-1, 1].
    """
    steps = schedule.steps if coded else schedule.plain_steps
    done, total = (schedule.plain_steps if coded else 0), schedule.plain_steps + schedule.steps
    last_layer = model.decoder.conv_out.weight
    bounds = (0.0, 1e4) if schedule.adaptive else (1.0, 1.0)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        x_B1HW = draw()
        if not coded:
            # Squares: most places are silent, and where |x| counts, silence everywhere is hard to leave.
            yield {"reconstruction": (model.decode_map(model.encode_map(x_B1HW)) - x_B1HW).square().mean()}
            return
        made_B1HW, quantized = model(x_B1HW)
        apart = None if perceptual is None else schedule.perceptual * perceptual(x_B1HW, made_B1HW)
        started = step >= schedule.disc_start
        discriminator.requires_grad_(False)
        logits = discriminator(made_B1HW) if started else made_B1HW.new_zeros(1)
        loss = autoencoder_loss(
            x_B1HW,
            made_B1HW,
            quantized.loss,
            logits,
            last_layer,
            started=started,
            perceptual_BHW=apart,
            bounds=bounds if started else (1.0, 1.0),
        )
        yield {"autoencoder": loss.total}
        discriminator.requires_grad_(True)
        if started:
            judged = discriminator(x_B1HW), discriminator(made_B1HW.detach())
            yield {"discriminator": discriminator_loss(*judged, started=True)}

    return Stage(
        name="codebook" if coded else "spectrograms",
        steps=steps,
        trained=nn.ModuleList([model, discriminator]).train(),
        kept=kept,
        optimizer=torch.optim.Adam(
            [{"params": list(network.parameters())} for network in (model, discriminator)], lr=schedule.rate, betas=_GAN_BETAS
        ),
        losses=losses,
        rate=lambda step: schedule.rate * warm_up(step, _WARMUP) * cosine(done + step, total, _LAST_FACTOR),
        preview=preview,
        gradient_norm=math.inf,
        report_every=max(1, steps // _REPORTS),
        generators=(generator,),
    )


def transformer_stage(
    model: SoundTransformer,
    draw: Callable[[], tuple[Tensor, Tensor]],
    schedule: TransformerSchedule,
    generator: torch.Generator,
    kept: nn.Module,
    *,
    held_out: Callable[[], tuple[Tensor, Tensor]] | None = None,
    preview: Show | None = None,
) -> Stage:
    """Return the stage that learns tokens. ``draw`` gives features [B, E, F] and tokens [B, N] of windows.

    ``held_out`` gives windows that are not drawn. With them ``state["best"]`` holds the score and the weights that did best.
    """
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    theirs = {id(weight) for weight in decayed}
    others = [parameter for parameter in model.parameters() if id(parameter) not in theirs]

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        feats_BEF, tokens_BN = draw()
        yield {"tokens": loss_of(feats_BEF, tokens_BN)}

    def loss_of(feats_BEF: Tensor, tokens_BN: Tensor) -> Tensor:
        return token_loss(model(feats_BEF, tokens_BN[:, :-1]), tokens_BN, model.config.features)

    state: dict[str, Any] = {"best": None}

    def after(done: int) -> After | None:
        if held_out is None or (done % schedule.check_every and done != schedule.steps):
            return None
        with torch.no_grad():
            found = float(loss_of(*held_out()))
        best = state["best"]
        if best is None or found < best["score"]:
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            state["best"] = best = {"score": found, "step": done, "weights": weights}
        note = f"held out {found:.4f}, best {best['score']:.4f}"
        return After(note, last=done - best["step"] >= schedule.patience * schedule.check_every)

    return Stage(
        name="tokens",
        steps=schedule.steps,
        trained=model.train(),
        kept=kept,
        optimizer=torch.optim.AdamW(
            [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
            lr=schedule.rate,
            betas=_TOKEN_BETAS,
        ),
        losses=losses,
        rate=lambda step: schedule.rate * warm_up(step, 5 * _WARMUP) * cosine(step, schedule.steps, _LAST_FACTOR),
        preview=preview,
        gradient_norm=1.0,
        report_every=max(1, schedule.steps // _REPORTS),
        generators=(generator,),
        state=state,
        after=after,
    )


def with_weight_norm(model: Vocoder) -> Vocoder:
    """Give every convolution the weight normalization that it is trained with, in place."""
    for module in list(model.modules()):
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            weight_norm(module)
    return model


def fold_weights(model: Vocoder) -> Vocoder:
    """Fold the normalization into plain weights, in place."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return model


def vocoder_stage(
    model: Vocoder,
    discriminator: WaveDiscriminator,
    draw: Callable[[], tuple[Tensor, Tensor]],
    schedule: VocoderSchedule,
    generator: torch.Generator,
    kept: nn.Module,
    *,
    preview: Show | None = None,
) -> Stage:
    """Return the stage that learns waveforms. ``draw`` gives spectrograms [B, 80, T] in [0, 1] and their samples [B, 256 T]."""

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        mel_BHT, real_BN = draw()
        made_BN = model(mel_BHT)
        started = step >= schedule.disc_start
        weight = schedule.spectral if started else 1.0
        parts = {"spectra": weight * spectral_distance(real_BN, made_BN)} if weight else {}
        if not started:
            yield parts
            return
        real = discriminator(real_BN)
        discriminator.requires_grad_(False)
        made = discriminator(made_BN)
        yield parts | {
            "generator": wave_generator_loss(made),
            "features": _FEATURE_MATCHING * feature_matching(real, made),
        }
        discriminator.requires_grad_(True)
        yield {"discriminator": wave_discriminator_loss(real, discriminator(made_BN.detach()))}

    def rate(step: int) -> tuple[float, float]:
        return schedule.rate * warm_up(step, _WARMUP) * cosine(step, schedule.steps, _LAST_FACTOR), schedule.disc_rate

    return Stage(
        name="waveforms",
        steps=schedule.steps,
        trained=nn.ModuleList([model, discriminator]).train(),
        kept=kept,
        optimizer=torch.optim.Adam(
            [{"params": list(network.parameters())} for network in (model, discriminator)], lr=schedule.rate, betas=_GAN_BETAS
        ),
        losses=losses,
        rate=rate,
        preview=preview,
        gradient_norm=math.inf,
        report_every=max(1, schedule.steps // _REPORTS),
        generators=(generator,),
    )
