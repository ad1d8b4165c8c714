"""The small model: the method's layout at toy size with a tokenizer of whole words and single digits.

SigLIP tower, Phi as encoder, Llama as answering model, in the library's own classes. Nothing here depends on how it is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from models.prompts import PromptTemplate
from models.tokenizers import WordTokenizer
from models.videostreaming.checkpoint import build_model
from models.videostreaming.config import VideoStreamingConfig
from models.videostreaming.loaders import VideoStreaming
from models.videostreaming.prompts import clip_time_text, time_prompt

__all__ = ["SMALL_CONFIG", "SMALL_PROMPTS", "build_small", "word_tokenizer"]

SMALL_PROMPTS = PromptTemplate(prefix="watch the video.", suffix=" answer:", letter_lead=" (")
SMALL_CONFIG = VideoStreamingConfig(
    frames_per_clip=8,
    clip_seconds=8.0,
    frame_summaries=1,
    select_clips=2,
    vision_layer=-1,
    encoder_layers=2,
    time_prompt="none",
    llm_time_text=False,
)
"""Clips of eight frames, one per second; two memories of eight tokens are 16 video tokens."""

_HIDDEN, _HEADS = 96, 4


def word_tokenizer(texts: Iterable[str]) -> WordTokenizer:
    """Return a tokenizer of the words of some texts, and of what the method itself says."""
    said = [SMALL_PROMPTS.prefix, SMALL_PROMPTS.suffix, "0123456789", clip_time_text(0, 1)]
    said += [time_prompt(0, 1, first=first) for first in (True, False)]
    return WordTokenizer.of([*texts, *said], digits=True)


def build_small(
    tokenizer: WordTokenizer, side: int, config: VideoStreamingConfig = SMALL_CONFIG, **sizes: int
) -> VideoStreaming:
    """Return a model with random weights (of torch's global generator) for square frames of ``side`` px; 4 tokens each.

    ``sizes``: other numbers for the language models' configs.
    """
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer.words),
        "hidden_size": _HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": config.encoder_layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "max_position_embeddings": 1024,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": tokenizer.end,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": side,
        "patch_size": side // 4,
    }
    model = build_model(
        config,
        vision=vision,
        encoder=text | {"model_type": "phi"} | sizes,
        language=text | {"model_type": "llama", "num_hidden_layers": 3, "tie_word_embeddings": True} | sizes,
    )
    return VideoStreaming(
        model=model.eval(),
        encoder_tokenizer=tokenizer,
        tokenizer=tokenizer,
        prompts=dataclasses.replace(SMALL_PROMPTS),
        end_tokens=frozenset({tokenizer.end}),
    )
