"""How good small networks are on clips that no training has seen: what the codec loses, and what is heard of what is seen.

Sound is made from the frames, from no frames (features of 0, which is what an average frame gives) and from those of another
clip; the truth goes the same way through codec and vocoder, as the best that could be.
"""

# B clips, R rows, E feature width, F features, W columns, N tokens or samples, H bands, T mel frames

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.bounces import Clip
from models.specvqgan.codec import bits_of, pack_tokens
from models.specvqgan.config import COLUMN_FRAMES, HOP, RATE, ROWS
from models.specvqgan.listening import Match, listen, match
from models.specvqgan.loaders import SoundNetworks
from models.specvqgan.mel import one_shot_mel
from models.specvqgan.sampling import Noise, generate
from models.specvqgan.tokens import grid_of, sequence_of
from models.specvqgan.transformer import SoundTransformer
from models.specvqgan.vision import PixelFeatures, picked_rows
from models.specvqgan.windows import COLUMN_ROWS, clip_rows_at, column_seconds

__all__ = ["Mode", "clip_mels", "codec_quality", "made_mels", "made_tokens", "measure", "rows_of", "sounds_in"]

Mode = Literal["frames", "none", "other"]


@torch.inference_mode()
def rows_of(clips: Sequence[Clip], features: PixelFeatures) -> Tensor:
    """Return the features [B, R, E] of the whole columns of clips of one length."""
    rows = _columns(clips) * COLUMN_ROWS
    return torch.stack([features(clip_rows_at(clip, rows, features)) for clip in clips])


@torch.inference_mode()
def clip_mels(clips: Sequence[Clip]) -> Tensor:
    """Return the spectrograms [B, 80, 16 W] in [0, 1] of the whole columns of clips."""
    frames = _columns(clips) * COLUMN_FRAMES
    return torch.stack([one_shot_mel(torch.from_numpy(clip.samples()))[:, :frames] for clip in clips])


def seen_in(rows_BRE: Tensor, mode: Mode) -> Tensor:
    """Return the features that sound is made from: those of the frames, none, or those of the next clip."""
    if mode == "frames":
        return rows_BRE
    return torch.zeros_like(rows_BRE) if mode == "none" else rows_BRE.roll(1, 0)


@torch.inference_mode()
def made_tokens(
    model: SoundTransformer,
    rows_BRE: Tensor,
    *,
    hop: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """Return the tokens [B, 5 W] that the transformer hears in features; a full window drops its ``hop`` oldest columns.

    ``hop``: half a window by default. ``temperature`` 0: the most likely tokens. Each clip has its own draws.
    """
    width, hop = model.config.columns, hop or max(1, model.config.columns // 2)
    total, size = rows_BRE.shape[1] // COLUMN_ROWS, len(rows_BRE)
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in range(size)]

    def exponential(_: int) -> Tensor:
        return torch.stack([torch.empty(model.config.codes).exponential_(generator=each) for each in generators])

    picked = picked_rows(width * COLUMN_ROWS, model.config.features)
    tokens_BN, start = torch.zeros(size, 0, dtype=torch.int64), 0
    while tokens_BN.shape[1] < ROWS * total:
        first = start * COLUMN_ROWS
        window_BRE = rows_BRE[:, first : first + width * COLUMN_ROWS]
        lacking = width * COLUMN_ROWS - window_BRE.shape[1]
        if lacking:  # behind the end stands the last row
            window_BRE = torch.cat([window_BRE, window_BRE[:, -1:].expand(-1, lacking, -1)], 1)
        noise: Noise | None = exponential if temperature else None
        made_BN = generate(
            model,
            window_BRE[:, picked].transpose(1, 2),
            min(width, total - start),
            noise=noise,
            temperature=temperature,
            top_k=top_k,
            prime_BN=tokens_BN[:, ROWS * start :],
        )
        tokens_BN = torch.cat([tokens_BN[:, : ROWS * start], made_BN], 1)
        start += hop
    return tokens_BN


@torch.inference_mode()
def made_mels(model: Autoencoder, tokens_BN: Tensor, columns: int) -> Tensor:
    """Return the spectrograms [B, 80, 16 W] in [0, 1] of tokens, decoded in windows of which the later half counts."""
    total, hop = tokens_BN.shape[1] // ROWS, max(1, columns // 2)
    grid_BHW, parts, done = grid_of(tokens_BN), [], 0
    while done < total:
        stop = min(total, columns if not done else done + hop)
        start = max(0, stop - columns)
        mel_BHT = ((model.decode(grid_BHW[:, :, start:stop])[:, 0] + 1) / 2).clamp(0, 1)
        parts.append(mel_BHT[..., (done - start) * COLUMN_FRAMES :])
        done = stop
    return torch.cat(parts, 2)


@torch.inference_mode()
def codec_quality(model: Autoencoder, mels: Sequence[Tensor], mean_H: Tensor, columns: int) -> dict[str, float]:
    """Return what the codec loses of spectrograms [80, T] in [0, 1]: mean |error| in [-1, 1], of blocks of ``columns``.

    Beside it stand two that need no bits: the mean of each band of other sounds, and silence. ``bits_per_s`` are those of the
    packed tokens.
    """
    lost, mean, silence, bits, seconds = 0.0, 0.0, 0.0, 0, 0.0
    cells = 0
    for mel_HT in mels:
        for block_HT in torch.split(mel_HT[:, : mel_HT.shape[1] // COLUMN_FRAMES * COLUMN_FRAMES], columns * COLUMN_FRAMES, 1):
            tokens_BHW = model.encode(2 * block_HT[None, None] - 1)
            made_HT = (model.decode(tokens_BHW)[0, 0] + 1) / 2
            lost += 2 * float((made_HT - block_HT).abs().sum())
            mean += 2 * float((mean_H[:, None] - block_HT).abs().sum())
            silence += 2 * float(block_HT.sum())
            cells += block_HT.numel()
            bits += 8 * len(pack_tokens(sequence_of(tokens_BHW)[0], model.config.codes))
            seconds += block_HT.shape[1] * HOP / RATE
    found = {"codec_error": lost / cells, "mean_error": mean / cells, "silence_error": silence / cells}
    return found | {"codec_bits_per_s": bits / seconds, "codec_bits": float(bits_of(model.config.codes))}


def heard_in(networks: SoundNetworks, mels_BHT: Tensor, clips: Sequence[Clip]) -> Match:
    """Vocode spectrograms and compare what is heard with what happens in their clips."""
    assert networks.vocoder is not None
    with torch.inference_mode():
        waves = torch.cat([networks.vocoder(part) for part in torch.split(mels_BHT, 4)])
    seconds = column_seconds(mels_BHT.shape[2] // COLUMN_FRAMES)
    found = (match(clip, listen(wave_N), seconds=seconds) for clip, wave_N in zip(clips, waves, strict=True))
    return functools.reduce(Match.__add__, found)


@torch.inference_mode()
def sounds_in(
    networks: SoundNetworks,
    clips: Sequence[Clip],
    *,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    modes: Sequence[Mode] = ("frames", "none", "other"),
) -> dict[str, Tensor]:
    """Return spectrograms [B, 80, T] in [0, 1] for clips of one length: the truth, the truth coded, and made in each mode."""
    model, transformer, features = networks.autoencoder, networks.transformer, networks.features
    assert model is not None and transformer is not None and isinstance(features, PixelFeatures)
    columns = transformer.config.columns
    real_BHT, rows_BRE = clip_mels(clips), rows_of(clips, features)
    blocks = torch.split(real_BHT, columns * COLUMN_FRAMES, 2)
    coded = [model.decode(model.encode(2 * part[:, None] - 1))[:, 0] for part in blocks]
    found = {"vocoded": real_BHT, "coded": ((torch.cat(coded, 2) + 1) / 2).clamp(0, 1)}
    for mode in modes:
        tokens_BN = made_tokens(transformer, seen_in(rows_BRE, mode), seed=seed, temperature=temperature, top_k=top_k)
        found[mode] = made_mels(model, tokens_BN, columns)
    return found


def measure(networks: SoundNetworks, clips: Sequence[Clip], made: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the figures of clips: of the codec, and of what is heard in sounds of them (see :func:`sounds_in`)."""
    assert networks.autoencoder is not None and networks.transformer is not None
    real_BHT = clip_mels(clips)
    found = codec_quality(networks.autoencoder, list(real_BHT), real_BHT.mean((0, 2)), networks.transformer.config.columns)
    for name, mels_BHT in made.items():
        for kind, value in heard_in(networks, mels_BHT, clips).shares().items():
            found[f"{kind}_{name}"] = value
    return found


def _columns(clips: Sequence[Clip]) -> int:
    return int(min(clip.seconds for clip in clips) * RATE) // (HOP * COLUMN_FRAMES)
