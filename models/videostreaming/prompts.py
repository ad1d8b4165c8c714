"""What VideoStreaming says about time, to the streaming encoder and to the answering model. Text only.

Times count from the stream's first frame, in seconds with one decimal; they only get longer as a stream goes on.
"""

from __future__ import annotations

from models.prompts import PromptTemplate
from models.videostreaming.config import TimePrompt

__all__ = ["VICUNA", "clip_time_text", "time_prompt"]

VICUNA = PromptTemplate(
    prefix=(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
        "polite answers to the user's questions. USER: "
    ),
    suffix=" ASSISTANT:",
    letter_lead=" Best option: (",
)
"""The chat form of Vicuna 1.5; the default of folders that bring no other, unless their answering model is a Qwen."""


def time_prompt(start_s: float, end_s: float, *, first: bool, parts: TimePrompt = "both") -> str:
    """Return what stands before a clip (paper section 3.1). The first clip has no history."""
    clip = f"a clip sampled in {start_s:.1f} to {end_s:.1f} seconds"
    history = f"a history of 0 to {start_s:.1f} seconds"
    said = {
        "both": [clip] if first else [history, clip],
        "history": [] if first else [history],
        "clip": [clip],
        "none": [],
    }[parts]
    return f"This contains {', and '.join(said)}." if said else ""


def clip_time_text(start_s: float, end_s: float) -> str:
    """Return what stands before a selected memory."""
    return f"clip {start_s:.1f}-{end_s:.1f} s"
