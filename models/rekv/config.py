"""Settings of ReKV that hold for a whole model: window, retrieval size, scores, positions.

Defaults are the paper's setting for LLaVA-OneVision (appendix; window 15,000 tokens, 64 frames). The number of prompt tokens
that stay as attention sinks is no setting: it is the length of the prompt prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from connectors.errors import ConfigError
from connectors.options import option

__all__ = ["Axes", "ReKVConfig"]

Axes = Literal["timeline", "segments", "line"]
"""``timeline``: a frame moves on the axis of time only (Qwen2-VL, Qwen2.5-VL). ``segments``: each begins on all axes where the
one before ended (Qwen3-VL). ``line``: one axis."""

Score = Literal["dot", "cosine"]
SinkOverlap = Literal["official", "exact"]
RopeMode = Literal["auto", "elapsed", "1d"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReKVConfig:
    """How a stream is encoded and how context is retrieved for a question."""

    window_tokens: int = option(15000, "Sliding attention window while encoding and answering.", unit="tokens", ge=1)
    retrieve_frames: int = option(64, "Frames each layer retrieves for a question.", unit="frames", ge=1)
    chunk_frames: int = option(
        1, "Neighboring frames that are scored and retrieved together; must divide retrieve_frames.", unit="frames", ge=1
    )
    score: Score = option("dot", "dot: plain dot product, as published code computes it; cosine: as the paper's text names it.")
    sink_overlap: SinkOverlap = option(
        "official",
        "official: a prompt token that is inside the window and already a sink counts twice, as in the published code; "
        "exact: once.",
    )
    rope_mode: RopeMode = option(
        "auto",
        "auto: the decoder's own rotation, on the axes of time, rows and columns for Qwen-VL; retrieved frames follow each "
        "other; elapsed: they keep the time between them (Qwen2-VL, Qwen2.5-VL); 1d: one running index.",
    )
    encode_frames: int = option(
        64, "Most frames, of all streams together, in one pass of the decoder; no influence on results.", unit="frames", ge=1
    )

    def __post_init__(self) -> None:
        for name in ("window_tokens", "retrieve_frames", "chunk_frames", "encode_frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rekv: {name} is {getattr(self, name)}; it must be at least 1")
        for name, allowed in (("score", Score), ("sink_overlap", SinkOverlap), ("rope_mode", RopeMode)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(f"rekv: {name} is {getattr(self, name)!r}; choose one of {list(get_args(allowed))}")
        if self.retrieve_frames % self.chunk_frames:
            raise ConfigError(
                f"rekv: retrieve_frames={self.retrieve_frames} is no multiple of chunk_frames={self.chunk_frames}; "
                "frames are retrieved in whole chunks, choose a divisor"
            )

    def check_block(self, tokens: int) -> None:
        """Raise ``ConfigError`` if the retrieved frames, ``tokens`` each, do not fit into the window (spec: r T <= W)."""
        if self.retrieve_frames * tokens > self.window_tokens:
            raise ConfigError(
                f"rekv: {self.retrieve_frames} retrieved frames of {tokens} tokens exceed window_tokens={self.window_tokens}; "
                f"set retrieve_frames to at most {self.window_tokens // tokens} or enlarge the window"
            )
