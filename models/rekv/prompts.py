"""What is said around the video and the question, per family, and the two questions types of the evaluation.

Text only. The prefix is encoded once before the video; the rest follows it. White space is part of the published prompts.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.errors import ConfigError

__all__ = ["PROMPTS", "PromptTemplate"]

_CHAT_START = "<|im_start|>system \nYou are a helpful assistant.<|im_end|><|im_start|>user "
_CHAT_END = "<|im_end|><|im_start|>assistant\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """Prefix before the video, suffix after the question, and the wording of multiple choice."""

    prefix: str
    suffix: str
    letter_lead: str = "Best option: ("
    """Begins the answer of a multiple-choice question, so that its first token is the letter."""
    instruction: str = "Only give the best option."

    def open_ended(self, question: str) -> str:
        """Return the text that follows the video for a free answer."""
        return f"\n{question}{self.suffix}"

    def multiple_choice(self, question: str, options: Sequence[str]) -> str:
        """Return the text that follows the video for an answer by letter. Raises ``ConfigError`` beyond 26 options."""
        if not 2 <= len(options) <= len(string.ascii_uppercase):
            raise ConfigError(f"rekv: a multiple-choice question has {len(options)} options; give 2 to 26")
        listed = "\n".join(f"({letter}) {text}" for letter, text in zip(string.ascii_uppercase, options, strict=False))
        return f"\nQuestion: {question}\nOptions:\n{listed}\n{self.instruction}{self.suffix}{self.letter_lead}"


PROMPTS = {
    "llava_onevision": PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END),
    "video_llava": PromptTemplate(prefix="USER: ", suffix=" ASSISTANT:", letter_lead=" Best option: ("),
    "internvl": PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END),
    "qwen2_vl": PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END),
    "qwen2_5_vl": PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END),
    "qwen3_vl": PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END),
}
"""Family → prompts; published for LLaVA-OneVision and Video-LLaVA, the chat form of the same decoder for the others."""
