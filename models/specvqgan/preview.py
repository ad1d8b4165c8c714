"""Spectrograms as they are and as the networks make them so far: the pictures that a training leaves beside its checkpoint."""

# H bands, T mel frames, N samples or tokens, E feature width, F features

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from connectors.charts import heat, sheet
from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.config import COLUMN_FRAMES
from models.specvqgan.mel import one_shot_mel
from models.specvqgan.sampling import generate
from models.specvqgan.tokens import grid_of
from models.specvqgan.transformer import SoundTransformer
from models.specvqgan.vocoder import Vocoder
from models.training import Picture, at_rest

__all__ = ["PIECES", "pieces_of", "show_codec", "show_seen", "show_waves"]

PIECES = 3
"""Sounds in a picture."""
_SCALE = 2


def pieces_of(mels: Sequence[Tensor], frames: int) -> list[Tensor]:
    """Return the loudest stretches of a few spectrograms [80, T] in [0, 1], of at most so many frames and of whole columns."""
    pieces = []
    for mel_HT in mels[:PIECES]:
        count = min(frames, mel_HT.shape[1]) // COLUMN_FRAMES * COLUMN_FRAMES
        first = int(mel_HT.mean(0).unfold(0, count, 1).mean(1).argmax())
        pieces.append(mel_HT[:, first : first + count])
    return pieces


def show_codec(model: Autoencoder, mels: Sequence[Tensor], *, coded: bool) -> Picture:
    """Show spectrograms [80, T] in [0, 1] above what comes out of the autoencoder, with or without its codebook."""
    device = model.codes_KD.device
    with at_rest(model):
        made = []
        for mel_HT in mels:
            x_1HT = 2 * mel_HT[None, None].to(device) - 1
            y_1HT = model.decode(model.encode(x_1HT)) if coded else model.decode_map(model.encode_map(x_1HT))
            made.append((y_1HT[0, 0] + 1) / 2)
    return _above(mels, made, "from codes" if coded else "without codes")


def show_waves(model: Vocoder, mels: Sequence[Tensor]) -> Picture:
    """Show spectrograms [80, T] in [0, 1] above those of the sound that the vocoder makes of them."""
    device = next(model.parameters()).device
    with at_rest(model):
        made = [one_shot_mel(model(mel_HT[None].to(device))[0].cpu())[:, : mel_HT.shape[1]] for mel_HT in mels]
    return _above(mels, made, "vocoder")


def show_seen(model: SoundTransformer, codec: Autoencoder, feats_BEF: Tensor, tokens_BN: Tensor) -> Picture:
    """Show the sound of windows, from their tokens [B, N], above the most likely one for their features [B, E, F]."""
    with at_rest(model):
        said_BN = generate(model, feats_BEF[:PIECES], model.config.columns, noise=None, temperature=0.0)
        real, made = (((codec.decode(grid_of(some))[:, 0] + 1) / 2) for some in (tokens_BN[:PIECES], said_BN))
    return _above(list(real), list(made), "from frames")


def _above(real: Sequence[Tensor], made: Sequence[Tensor], words: str) -> Picture:
    rows = [
        (name, [(heat(mel_HT.detach().float().cpu().numpy(), 0.0, 1.0, scale=_SCALE), "") for mel_HT in mels])
        for name, mels in (("real", real), (words, made))
    ]
    return sheet(rows, height=80 * _SCALE, left=110)
