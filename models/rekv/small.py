"""The small model: LLaVA-OneVision's layout at toy size with a tokenizer of whole words, in one safetensors file.

The file's header holds the model's config, the words, the prompts and the settings it was trained for, so that it needs
nothing beside it. Same classes as the published models; nothing here depends on how it was trained.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from connectors.errors import CheckpointMismatch
from connectors.extras import optional
from models.file_headers import damaged_named, make_header, require_model
from models.prompts import PromptTemplate
from models.rekv.config import ReKVConfig
from models.rekv.header import FORMAT, MODEL, SMALL_REKV
from models.tokenizers import WordTokenizer
from models.weight_files import read_safetensors, write_safetensors

transformers = optional("transformers")

__all__ = ["SMALL_PROMPTS", "SmallModel", "build_small", "load_small", "save_small"]

SMALL_PROMPTS = PromptTemplate(prefix="watch the video.", suffix=" answer:", letter_lead=" (")


@dataclass(frozen=True, slots=True, eq=False)
class SmallModel:
    """A small model of transformers' classes with what belongs to it."""

    model: Any
    """``LlavaOnevisionForConditionalGeneration``."""
    tokenizer: WordTokenizer
    prompts: PromptTemplate
    rekv: ReKVConfig


def build_small(tokenizer: WordTokenizer, side: int) -> SmallModel:
    """Return a model with random weights (of torch's global generator) for square frames of ``side`` px; 4 tokens each."""
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer.words),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "tie_word_embeddings": True,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": tokenizer.end,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": side,
        "patch_size": side // 4,
        "vision_use_head": False,
    }
    config = {
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "projector_hidden_act": "gelu",
        "image_token_index": 1,
        "video_token_index": 1,
        "tie_word_embeddings": True,
    }
    return SmallModel(_instance(config), tokenizer, SMALL_PROMPTS, SMALL_REKV)


def save_small(small: SmallModel, path: str | os.PathLike[str]) -> None:
    """Write one safetensors file with everything in it."""
    tensors = dict(small.model.state_dict())
    if small.model.config.text_config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    metadata = make_header(
        MODEL,
        FORMAT,
        config=small.model.config.to_diff_dict(),
        words=small.tokenizer.words,
        prompts=dataclasses.asdict(small.prompts),
        rekv=dataclasses.asdict(small.rekv),
    )
    write_safetensors(tensors, metadata, Path(path))


def load_small(path: str | os.PathLike[str]) -> SmallModel:
    """Read what :func:`save_small` wrote. Raises ``CheckpointMismatch`` for any other file."""
    file = Path(path)
    tensors, metadata = read_safetensors(file)
    require_model(metadata, MODEL, FORMAT, file, otherwise="a published checkpoint is given as its folder")
    with damaged_named(file):
        config, words, prompts, rekv = (json.loads(metadata[name]) for name in ("config", "words", "prompts", "rekv"))
        small = SmallModel(_instance(config), WordTokenizer(words), PromptTemplate(**prompts), ReKVConfig(**rekv))
    missing, unexpected = small.model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if name != "lm_head.weight"]
    if missing or unexpected:
        raise CheckpointMismatch(f"{file}: tensors missing {missing[:5]}, unexpected {unexpected[:5]}; train it again")
    small.model.tie_weights()
    return small


def _instance(config: dict[str, Any]) -> nn.Module:
    model: nn.Module = transformers.LlavaOnevisionForConditionalGeneration(transformers.LlavaOnevisionConfig(**config))
    return model.eval()
