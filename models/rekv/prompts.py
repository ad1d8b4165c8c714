"""What is said around the video and the question, per family. The prefix is encoded once before the video."""

from __future__ import annotations

from models.prompts import PromptTemplate

__all__ = ["PROMPTS"]

_CHAT_START = "<|im_start|>system \nYou are a helpful assistant.<|im_end|><|im_start|>user "
_CHAT_END = "<|im_end|><|im_start|>assistant\n"


PROMPTS = {
    "llava_onevision": PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END),
    "video_llava": PromptTemplate(prefix="USER: ", suffix=" ASSISTANT:", letter_lead=" Best option: ("),
    "internvl": PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END),
    "qwen2_vl": PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END),
    "qwen2_5_vl": PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END),
    "qwen3_vl": PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END),
}
"""Family → prompts; published for LLaVA-OneVision and Video-LLaVA, the chat form of the same decoder for the others."""
