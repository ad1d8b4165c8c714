"""What can be known of ``specvqgan_codec`` before it is built. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from models.hub import weights_folder
from models.specvqgan.parts import SMALL_WEIGHTS, find_parts
from operators.base import Operator
from operators.pcm import SOUND_KEYS
from operators.specvqgan_codec.config import SpecVQGANCodecOptions
from operators.specvqgan_codec.schemas import BLOCK, SOUND, STATUSES, TOKENS
from operators.streams import STREAM_LOSSES

__all__ = ["OUTPUT_OF", "SpecVQGANCodecDeclaration", "folder_of", "parts_of"]

OUTPUT_OF = {"encode": "tokens", "decode": "sound"}
"""Mode → the output that it has."""


class SpecVQGANCodecDeclaration(Operator):
    """Sound as tokens of 0.27 kbit/s, and back (SpecVQGAN, arXiv 2110.08791).

    With mode decode it takes rows with codebook, n_samples, n_cols, bits and payload, as the output `tokens` gives them.
    """

    implementation = "operators.specvqgan_codec.operator:SpecVQGANCodecOperator"
    Options = SpecVQGANCodecOptions
    input_schema = SOUND_KEYS
    outputs: Mapping[str, pa.Schema] = {"tokens": TOKENS, "sound": SOUND}
    statuses = STATUSES
    good_statuses = frozenset({"ok", "gap"})
    losses: ClassVar[Mapping[str, str]] = STREAM_LOSSES

    @classmethod
    def takes(cls, options: SpecVQGANCodecOptions) -> pa.Schema:
        """Return what a row must have: sound, or tokens."""
        return SOUND_KEYS if options.mode == "encode" else BLOCK

    @classmethod
    def examine(cls, options: SpecVQGANCodecOptions, name: str) -> Mapping[str, pa.Schema]:
        """Look for the checkpoint's files; return the output's schema."""
        find_parts(folder_of(options), parts_of(options))
        return {OUTPUT_OF[options.mode]: cls.outputs[OUTPUT_OF[options.mode]]}


def folder_of(options: SpecVQGANCodecOptions) -> Path:
    """Return where the checkpoint lies."""
    return weights_folder(options.checkpoint, SMALL_WEIGHTS)


def parts_of(options: SpecVQGANCodecOptions) -> list[str]:
    """Return the networks that are needed."""
    return ["autoencoder"] if options.mode == "encode" else ["autoencoder", "vocoder"]
