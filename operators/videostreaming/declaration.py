"""What can be known of ``videostreaming`` before it is built. Imports no torch."""

from __future__ import annotations

import pyarrow as pa

from connectors import records
from operators.base import Operator
from operators.questions import GOOD_STATUSES, QUESTION
from operators.videostreaming.config import VideoStreamingOptions
from operators.videostreaming.schemas import ANSWER, LOSSES, STATUSES
from operators.videostreaming.settings import settings

__all__ = ["VideoStreamingDeclaration"]


class VideoStreamingDeclaration(Operator):
    """Video question answering from selected memories of clips (VideoStreaming; arXiv 2405.16009)."""

    implementation = "operators.videostreaming.operator:VideoStreamingOperator"
    Options = VideoStreamingOptions
    input_schema = records.FRAME
    control_schema = QUESTION
    output_schema = ANSWER
    takes_kept_frames = True
    statuses = STATUSES
    good_statuses = GOOD_STATUSES
    losses = LOSSES

    @classmethod
    def examine(cls, options: VideoStreamingOptions, name: str) -> pa.Schema:
        """Check the checkpoint's place and the settings; return the output schema."""
        settings(options, name)
        options.check_matcher(name)
        return ANSWER
