"""What ``specvqgan`` should make of a stream, the slow and obvious way: all frames, no cache, no batches, no chunks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.specvqgan.loaders import load_networks
from models.specvqgan.parts import PARTS
from models.specvqgan.sampling import choose
from models.specvqgan.tokens import grid_of
from models.specvqgan.vision import picked_rows, slots_of
from operators.banks import stream_seed
from operators.specvqgan.drawing import token_noise


@torch.inference_mode()
def reference(
    folder: Path,
    name: str,
    images: Sequence[np.ndarray],
    times_s: Sequence[float],
    *,
    hop: int,
    emit: int,
    fade: int,
    lookahead: int | None = None,
    rate: float = 22050 / 1024,
) -> tuple[list[int], np.ndarray]:
    """Return the tokens and the 16-bit samples of a whole stream, computed in float64."""
    networks = load_networks(folder, PARTS)
    transformer, autoencoder, vocoder = (
        network.double() for network in (networks.transformer, networks.autoencoder, networks.vocoder)
    )
    eyes = networks.features
    config = transformer.config
    window, rows = config.columns, 4 * config.columns
    slots = slots_of([t - times_s[0] for t in times_s], rate)
    feats = torch.stack([eyes(eyes.pixels(torch.from_numpy(images[i]))[None])[0] for i in slots])
    columns = -(-len(feats) // 4)
    seed = torch.tensor([stream_seed(0, name, "tokens")])
    tokens: list[int] = []
    starts: list[int] = []
    start, seen = -1, feats
    for column in range(columns):
        moved = max(start, 0)
        while column - moved >= window:
            moved += hop
        needed = 4 * (moved + window if lookahead is None else min(moved + window, column + max(1, lookahead)))
        ended = needed > len(feats) - 1  # the last row is final when the stream ends
        if ended:
            moved = max(start, 0, min(moved, columns - window))
        if moved != start:
            start = moved
            if ended:
                picks = [4 * start + p for p in picked_rows(rows, config.features)]
                picks = [p % len(feats) for p in picks] if len(feats) < rows else [min(p, len(feats) - 1) for p in picks]
            else:
                picks = [min(4 * start + p, needed - 1) for p in picked_rows(rows, config.features)]
            seen = feats[picks].T[None].double()
        starts.append(start)
        for place in range(5 * column, 5 * column + 5):
            known = torch.tensor([tokens[5 * start :]])
            logits = transformer(seen, known)[:, -1] if known.shape[1] else transformer.head(first(transformer, seen))[:, -1]
            noise = token_noise(seed, torch.tensor([place]), config.codes)
            tokens.append(int(choose(logits.float(), noise, top_k=config.codes // 2)[0]))
    mel = mel_of(autoencoder, tokens, window, emit, fade, whole=lookahead is None)
    sound = vocoder(mel[None])[0][: 1024 * len(feats)]
    return tokens, (sound.double() * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()


def first(transformer: torch.nn.Module, feats_BEF: Tensor) -> Tensor:
    """Return what the head reads of features alone."""
    x = transformer.embed(feats_BEF, None) + transformer.pos_emb[:, : feats_BEF.shape[2]]
    for block in transformer.blocks:
        q, k, v = block.attn.split(block.ln1(x))
        x = x + block.attn.join(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        x = x + block.mlp(block.ln2(x))
    return transformer.ln_f(x)


def mel_of(autoencoder: torch.nn.Module, tokens: Sequence[int], window: int, emit: int, fade: int, *, whole: bool) -> Tensor:
    """Decode the newest window after every ``emit`` columns, and fade each into the one before."""
    columns = len(tokens) // 5
    mel = torch.zeros(80, 0, dtype=torch.float64)
    voiced = 0
    for column in range(1, columns + 1):
        last = column == columns
        due = column == window if voiced == 0 and whole else column - voiced >= emit
        if not (due or last):
            continue
        begin = max(0, column - window)
        made = (autoencoder.decode(grid_of(torch.tensor([tokens[5 * begin : 5 * column]])))[0, 0] + 1) / 2
        held = min(16 * fade, mel.shape[1] - 16 * max(0, voiced - fade)) if voiced else 0
        weight = torch.arange(1, held + 1, dtype=torch.float64) / (held + 1)
        fresh = made[:, 16 * voiced - held - 16 * begin :]
        fresh = torch.cat([(1 - weight) * mel[:, mel.shape[1] - held :] + weight * fresh[:, :held], fresh[:, held:]], 1)
        mel = torch.cat([mel[:, : mel.shape[1] - held], fresh], 1)
        voiced = column
    return mel
