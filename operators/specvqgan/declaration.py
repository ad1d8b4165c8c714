"""What can be known of ``specvqgan`` before it is built. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pyarrow as pa

from connectors import records
from models.hub import weights_folder
from models.specvqgan.parts import SMALL_WEIGHTS, find_parts
from operators.base import Operator
from operators.specvqgan.config import SpecVQGANOptions
from operators.specvqgan.schemas import FEATURE, OUTPUTS, STATUSES
from operators.streams import STREAM_LOSSES

__all__ = ["SpecVQGANDeclaration", "parts_of"]


class SpecVQGANDeclaration(Operator):
    """Sound that fits silent video, for many endless streams at once (SpecVQGAN, arXiv 2110.08791)."""

    implementation = "operators.specvqgan.operator:SpecVQGANOperator"
    Options = SpecVQGANOptions
    input_schema = records.FRAME
    outputs = OUTPUTS
    takes_kept_frames = True
    statuses = STATUSES
    good_statuses = frozenset({"ok", "gap"})
    losses: ClassVar[Mapping[str, str]] = {
        **STREAM_LOSSES,
        "frames_behind": "frames for which no sound was made because the clock was too far ahead (on_behind: drop)",
    }

    @classmethod
    def takes(cls, options: SpecVQGANOptions) -> pa.Schema:
        """Return what a row must have: a frame, or a feature."""
        return FEATURE if options.given_features else records.FRAME

    @classmethod
    def examine(cls, options: SpecVQGANOptions, name: str) -> Mapping[str, pa.Schema]:
        """Look for the checkpoint's files; return the output schemas."""
        find_parts(weights_folder(options.checkpoint, SMALL_WEIGHTS), parts_of(options))
        return OUTPUTS


def parts_of(options: SpecVQGANOptions) -> list[str]:
    """Return the networks that are needed."""
    return ["autoencoder", "transformer", "vocoder", *([] if options.given_features else ["features"])]
