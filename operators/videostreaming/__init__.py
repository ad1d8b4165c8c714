"""Questions about videos of any length, answered from a few selected memories of clips (VideoStreaming, NeurIPS 2024)."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.videostreaming.config import VideoStreamingOptions
    from operators.videostreaming.operator import VideoStreamingOperator

__all__ = ["VideoStreamingOperator", "VideoStreamingOptions"]

__getattr__ = lazy_names(__name__, {"VideoStreamingOperator": "operator", "VideoStreamingOptions": "config"})
