"""Options of the operator ``specvqgan_codec``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from connectors.options import option
from models.specvqgan.config import WINDOW_COLUMNS
from operators.streams import StreamOptions

__all__ = ["SpecVQGANCodecOptions"]


@dataclass(frozen=True, kw_only=True)
class SpecVQGANCodecOptions(StreamOptions):
    """What a user can set for ``type: specvqgan_codec`` (arXiv 2110.08791)."""

    mode: Literal["encode", "decode"] = option(
        "encode", "`encode` sound to tokens (output `tokens`), or `decode` tokens to sound (output `sound`)."
    )
    checkpoint: str | None = option(
        None,
        "Folder with autoencoder and, to decode, vocoder (.safetensors, or official .ckpt and .pt), or "
        "hf://ORG/NAME[@REVISION]; without it the small ones that come with the package.",
        path=True,
    )
    block_cols: int = option(
        WINDOW_COLUMNS,
        "Columns of a block, 0.186 s each: it is encoded as a whole, so tokens are as late as a block is long.",
        unit="columns",
        ge=1,
        le=512,
    )
    max_gap_s: float = option(
        2.0,
        "A shorter pause becomes silence; a longer one ends the block, and a new one begins (status `gap`).",
        unit="s",
        gt=0,
    )
