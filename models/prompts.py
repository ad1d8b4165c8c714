"""What is said around a video and a question, and the wording of multiple choice.

Text only. White space is part of published prompts.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.errors import ConfigError

__all__ = ["QWEN_CHAT", "PromptTemplate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """Prefix before the video, suffix after the question, and the wording of multiple choice."""

    prefix: str
    suffix: str
    letter_lead: str = "Best option: ("
    """Begins the answer of a multiple-choice question, so that its first token is the letter."""
    instruction: str = "Only give the best option."
    after_video: str = "\n"
    """What comes between the video and the question."""

    def open_ended(self, question: str) -> str:
        """Return the text that follows the video for a free answer."""
        return f"{self.after_video}{question}{self.suffix}"

    def multiple_choice(self, question: str, options: Sequence[str]) -> str:
        """Return the text that follows the video for an answer by letter. Raises ``ConfigError`` beyond 26 options."""
        if not 2 <= len(options) <= len(string.ascii_uppercase):
            raise ConfigError(f"a multiple-choice question has {len(options)} options; give 2 to 26")
        listed = "\n".join(f"({letter}) {text}" for letter, text in zip(string.ascii_uppercase, options, strict=False))
        return f"{self.after_video}Question: {question}\nOptions:\n{listed}\n{self.instruction}{self.suffix}{self.letter_lead}"


QWEN_CHAT = PromptTemplate(
    prefix="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    suffix="<|im_end|>\n<|im_start|>assistant\n",
)
"""The chat template of Qwen2, Qwen2-VL and Qwen2.5-VL, with a system turn of its own."""
