"""What can be known of ``mamba`` before it is built. Imports no torch."""

from __future__ import annotations

import pyarrow as pa

from connectors import records
from models.hub import weights_file
from models.mamba.header import read_config
from operators.base import Operator
from operators.mamba.config import MambaOptions
from operators.mamba.schemas import STATUSES, detection_schema
from operators.mamba.settings import adapt_config, config_hash, network, reported_labels
from operators.streams import STREAM_LOSSES

__all__ = ["MambaDeclaration"]


class MambaDeclaration(Operator):
    """Video object detection with one memory per stream (MAMBA; arXiv 2401.09923)."""

    implementation = "operators.mamba.operator:MambaOperator"
    Options = MambaOptions
    input_schema = records.FRAME
    takes_kept_frames = True
    statuses = STATUSES
    good_statuses = frozenset({"ok", "no_detection"})
    losses = STREAM_LOSSES

    @classmethod
    def examine(cls, options: MambaOptions, name: str) -> pa.Schema:
        """Check the checkpoint's names and shapes, or ``network``; return the output schema."""
        config = read_config(weights_file(options.checkpoint)) if options.checkpoint else network(options, name)
        config = adapt_config(config, options, name)
        reported_labels(config, options, name)
        return detection_schema(config.classes, config_hash(config, options))
