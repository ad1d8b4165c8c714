"""What can be known of ``fourd_vla`` before it is built. Imports no torch."""

from __future__ import annotations

import pyarrow as pa

from connectors import records
from models.fourd_vla.header import SMALL_WEIGHTS, policy_config
from models.hub import weights_place
from operators.base import Operator
from operators.fourd_vla.config import FourDVLAOptions, Given
from operators.fourd_vla.schemas import FEATURE, STATUSES, output_schema
from operators.streams import STREAM_LOSSES

__all__ = ["FourDVLADeclaration"]


class FourDVLADeclaration(Operator):
    """Memory bank sampling of RGB-D frames with calibrated coordinates, and the 4D-VLA policy (arXiv 2506.22242)."""

    implementation = "operators.fourd_vla.operator:FourDVLAOperator"
    Options = FourDVLAOptions
    input_schema = records.RGBD
    statuses = STATUSES
    good_statuses = frozenset({"ok", "new_episode"})
    losses = STREAM_LOSSES

    @classmethod
    def takes(cls, options: FourDVLAOptions) -> pa.Schema:
        """Return what a row must have: for an action all of RGB-D, for a selection an image or a feature."""
        if options.mode == "act":
            return records.RGBD
        return FEATURE if isinstance(options.features, Given) else records.FRAME

    @classmethod
    def examine(cls, options: FourDVLAOptions, name: str) -> pa.Schema:
        """Check the policy's settings; return the output schema."""
        if options.mode == "act":
            policy_config(weights_place(options.checkpoint, SMALL_WEIGHTS))
        return output_schema(acts=options.mode == "act")
