"""Questions about videos of any length, answered from a few selected memories of clips (VideoStreaming, NeurIPS 2024)."""

from operators.videostreaming.config import VideoStreamingOptions
from operators.videostreaming.operator import VideoStreamingOperator

__all__ = ["VideoStreamingOperator", "VideoStreamingOptions"]
