"""Tiny random models of VideoStreaming, clips, and checkpoint folders as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.videostreaming.checkpoint import build_model
from models.videostreaming.config import VideoStreamingConfig
from models.videostreaming.encoding import Clip, EncodedClip, encode_clips
from models.videostreaming.loaders import VideoStreaming
from models.videostreaming.model import VideoStreamingModel
from models.videostreaming.small import build_small, word_tokenizer

TOKENS, WIDTH, WORDS = 16, 20, 40
CONFIG = VideoStreamingConfig(frames_per_clip=3, frame_summaries=4, select_clips=2, encoder_layers=2)
PHI: dict[str, Any] = {
    "model_type": "phi",
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
LLAMA: dict[str, Any] = PHI | {"model_type": "llama", "hidden_size": 24, "eos_token_id": 3, "bos_token_id": None}
CLIP: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 8,
}


def tiny_model(seed: int = 0, *, config: VideoStreamingConfig = CONFIG, head: bool = False) -> VideoStreamingModel:
    """Return a random model that takes features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, vision=None, encoder=PHI, language=LLAMA, feature_width=WIDTH, encoder_head=head)
        return enlarged(model).eval().requires_grad_(False)


def enlarged(model: VideoStreamingModel) -> VideoStreamingModel:
    """Make weights large enough that outputs depend on all of the input."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def tiny_ready(seed: int = 0, side: int = 16, **changed: Any) -> VideoStreaming:
    """Return a random model with tower and tokenizer, as it lies in one file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = {"frames_per_clip": 3, "frame_summaries": 1, "select_clips": 2, "encoder_layers": 2, "vision_layer": -1}
        config = VideoStreamingConfig(**settings | {"clip_seconds": 3.0} | changed)
        words = word_tokenizer(["which colour is it? when did a red circle come"])
        ready = build_small(words, side, config, hidden_size=32, intermediate_size=48)
        enlarged(ready.model).requires_grad_(False)
    return ready


def features(clips: int, seed: int = 1, frames: int = 3) -> Tensor:
    """Return random features [K, T, N, C]."""
    return torch.randn(clips, frames, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def ids(count: int, seed: int = 5) -> Tensor:
    """Return random token ids."""
    return torch.randint(4, WORDS, (count,), generator=torch.Generator().manual_seed(seed))


def encoded(model: VideoStreamingModel, features_KTNC: Tensor) -> list[EncodedClip]:
    """Encode clips one after the other."""
    memory, done = None, []
    for k, part in enumerate(features_KTNC):
        (one,) = encode_clips(model, [Clip(part, ids(4, seed=k), memory)])
        memory = one.memory_MD
        done.append(one)
    return done


def publish(folder: Path, *, layers: int = 3, projectors: bool = True, seed: int = 0) -> Path:
    """Write a checkpoint folder of three random models as they are published, and projectors."""
    import transformers
    from safetensors.torch import save_file

    from models.videostreaming.model import projector

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
                vision_config=CLIP,
                projection_dim=8,
            )
        )
        phi = transformers.PhiForCausalLM(transformers.PhiConfig(**_own(PHI) | {"num_hidden_layers": layers}))
        llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_own(LLAMA)))
        for name, model in (("vision_tower", clip), ("streaming_encoder", phi), ("language_model", llama)):
            model.save_pretrained(folder / name)
        for name in ("streaming_encoder", "language_model"):
            write_tokenizer(folder / name)
        if projectors:
            own = {"mm_projector": projector(4 * CLIP["hidden_size"], 32), "memory_projector": projector(32, 24)}
            tensors = {f"{part}.{key}": value for part, module in own.items() for key, value in module.state_dict().items()}
            save_file(tensors | {"sim_scale": torch.tensor(7.0)}, folder / "projectors.safetensors")
    return folder


def _own(said: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name != "model_type"}


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "<end>", *"which colour is it when did a red circle come".split()]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
