"""Settings of VideoStreaming that hold for a whole model. Defaults are the paper's; what the paper leaves open says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from connectors.errors import ConfigError
from connectors.options import option

__all__ = ["Similarity", "TimePrompt", "VideoStreamingConfig"]

Similarity = Literal["cosine", "dot"]
TimePrompt = Literal["both", "history", "clip", "none"]
SummaryInit = Literal["pooled", "learned"]

_AT_LEAST_ONE = ("frames_per_clip", "frame_summaries", "select_clips", "encoder_layers")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoStreamingConfig:
    """How clips are encoded and how memories are selected for a question."""

    frames_per_clip: int = option(16, "Frames of a clip (the paper's T).", unit="frames", ge=1)
    clip_seconds: float = option(
        8.0, "Length of a clip; with frames_per_clip it gives the frame rate (inferred).", unit="s", gt=0
    )
    frame_summaries: int = option(4, "Summary tokens of a frame, a square number (the paper's P).", unit="tokens", ge=1)
    select_clips: int = option(4, "Memories that a question selects (the paper's V).", unit="clips", ge=1)
    vision_layer: int = option(-2, "Hidden states of the vision tower that are taken; -1: of the last layer (inferred).")
    encoder_layers: int = option(16, "First layers of the small language model that encode clips.", unit="layers", ge=1)
    final_norm: bool = option(True, "Apply the small language model's last norm to memories and indicators (inferred).")
    summary_init: SummaryInit = option(
        "pooled", "Summary tokens are the pooled patches of their frame (inferred), or `learned` ones."
    )
    propagate: bool = option(True, "Each clip sees the memory of the clip before; false is the paper's ablation.")
    time_prompt: TimePrompt = option("both", "What a clip is told about time: history and clip, one of them, or none.")
    similarity: Similarity = option("cosine", "How indicators are compared; `dot` is the paper's ablation.")
    similarity_scale: float = option(10.0, "Factor of the similarity before the soft-max; learned (inferred).", gt=0)
    llm_time_text: bool = option(True, "Tell the answering model the time of each selected clip (inferred).")
    include_newest: bool = option(False, "Add the newest memory where it is not selected (inferred).")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value: Any = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ConfigError(f"videostreaming: {name} is {value!r}; choose one of {list(get_args(kind))}")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"videostreaming: {name} is {getattr(self, name)}; it must be at least 1")
        if math.isqrt(self.frame_summaries) ** 2 != self.frame_summaries:
            raise ConfigError(f"videostreaming: frame_summaries is {self.frame_summaries}; it must be a square: 1, 4, 9, ..")
        if not self.clip_seconds > 0 or not self.similarity_scale > 0:
            raise ConfigError(
                f"videostreaming: clip_seconds={self.clip_seconds} and similarity_scale={self.similarity_scale} must be above 0"
            )

    @property
    def memory_tokens(self) -> int:
        """Tokens of the memory of a full clip."""
        return self.frames_per_clip * self.frame_summaries

    @property
    def video_tokens(self) -> int:
        """Tokens of video that the answering model reads at most, times of clips not counted."""
        return (self.select_clips + self.include_newest) * self.memory_tokens
