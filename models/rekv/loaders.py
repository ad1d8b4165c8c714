"""A video-language model ready for ReKV, from a local folder: decoder, frame encoder, tokenizer, prompts.

LLaVA-OneVision, Video-LLaVA and InternVL take frames of one size, Qwen2-VL, Qwen2.5-VL and Qwen3-VL pairs of frames of any.
"""

# n tokens

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch, ConfigError
from models.prompts import PromptTemplate
from models.rekv.checkpoint import load_checkpoint
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_prefix
from models.rekv.families import FAMILIES
from models.rekv.header import SMALL_UNSURE_BELOW, SMALL_WEIGHTS, read_model_type
from models.rekv.qwen_vision import QwenVision
from models.rekv.session import Prefix
from models.rekv.small import load_small
from models.rekv.video_blocks import VideoBlocks
from models.rekv.vision import FrameEncoder
from models.tokenizers import FolderTokenizer, Tokenizer

__all__ = ["VideoLanguageModel", "load_model", "wrap_model"]

_FRAME_TOKENS = 196  # as many as LLaVA-OneVision has, so that 64 retrieved blocks fit into the published window


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class VideoLanguageModel:
    """Everything that answering from frames needs, weights included; no stream."""

    family: str
    network: Any
    """The whole model as transformers loads it."""
    decoder: TextDecoder
    frames: FrameEncoder | QwenVision
    video: VideoBlocks | None
    """How blocks are laid out that are not all alike; None: a frame is a block, and all are alike."""
    tokenizer: Tokenizer | None
    """None where the folder has none; then token ids must be given."""
    prompts: PromptTemplate
    end_tokens: frozenset[int]
    unsure_below: float = 0.0
    """Confidence below which its answers are better called unsure; 0 where nobody has calibrated it."""

    def prefix(self) -> Prefix:
        """Return the encoded prompt prefix; one serves all streams."""
        return encode_prefix(self.decoder, self.ids(self.prompts.prefix, start=True))

    def ids(self, text: str, *, start: bool = False) -> Tensor:
        """Return the token ids [n] of a text. Raises ``CheckpointMismatch`` without a tokenizer."""
        return _ids(self.tokenizer, self.family, text, start=start)

    def unknown(self, text: str) -> list[str]:
        """Return the words of a text that the tokenizer cannot tell apart from others."""
        return [] if self.tokenizer is None else self.tokenizer.unknown(text)


def load_model(
    checkpoint: str | os.PathLike[str],
    config: ReKVConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    frame_tokens: int | None = None,
    frames_per_block: int | None = None,
) -> VideoLanguageModel:
    """Load a checkpoint folder of a supported family, or the file of a small model.

    ``dtype`` None keeps the checkpoint's. ``frame_tokens``, ``frames_per_block``: see :func:`wrap_model`.
    Raises ``CheckpointMismatch`` or ``ConfigError``.
    """
    path = Path(checkpoint)
    if path.is_file():
        small = load_small(path)
        ready = small.model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        wrapped = wrap_model(
            ready,
            "llava_onevision",
            config,
            small.tokenizer,
            small.prompts,
            frame_tokens=frame_tokens,
            frames_per_block=frames_per_block,
        )
        return dataclasses.replace(wrapped, unsure_below=SMALL_UNSURE_BELOW if path.resolve() == SMALL_WEIGHTS else 0.0)
    model = load_checkpoint(path, device=device, dtype=dtype)
    tokenizer = FolderTokenizer(path) if (path / "tokenizer_config.json").exists() else None
    return wrap_model(
        model, read_model_type(path), config, tokenizer, frame_tokens=frame_tokens, frames_per_block=frames_per_block
    )


def wrap_model(
    model: Any,
    family: str,
    config: ReKVConfig,
    tokenizer: Tokenizer | None = None,
    prompts: PromptTemplate | None = None,
    *,
    frame_tokens: int | None = None,
    frames_per_block: int | None = None,
) -> VideoLanguageModel:
    """Wrap a model of transformers that is in memory; ``prompts`` None takes the family's.

    The attention of its decoder is switched to ReKV's. Of families that take frames of any size: ``frame_tokens``, most tokens
    of a frame (None: 196), and ``frames_per_block``, 1 or 2 (None: 2). Raises ``ConfigError`` where others are given these.
    """
    known = FAMILIES[family]
    decoder = TextDecoder.of(model.model.language_model, model.lm_head, config)
    ends: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, model.config.text_config):
        end = getattr(source, "eos_token_id", None)
        ends |= set() if end is None else {end} if isinstance(end, int) else set(end)
    frames: FrameEncoder | QwenVision
    video = None
    if known.video is None:
        frames = FrameEncoder.of(model, family)
        if frame_tokens is not None or frames_per_block not in (None, 1) or config.rope_mode == "elapsed":
            raise ConfigError(
                f"rekv: frame_tokens={frame_tokens}, frames_per_block={frames_per_block}, rope_mode={config.rope_mode!r}: "
                f"frames of {family} are of one size and a block each, in one line; leave these options out"
            )
    else:
        most_frames = model.config.vision_config.temporal_patch_size
        if frames_per_block is not None and not 1 <= frames_per_block <= most_frames:
            raise ConfigError(f"rekv: frames_per_block={frames_per_block}; {family} sees 1 to {most_frames} frames together")
        if config.rope_mode == "elapsed" and known.video.axes != "timeline":
            raise ConfigError(f"rekv: rope_mode='elapsed': {family} reads times as words, its positions have none; use 'auto'")
        frames = QwenVision(model.model, known.mean_std, frame_tokens or _FRAME_TOKENS, frames_per_block or most_frames)
        video = VideoBlocks(
            form=known.video,
            axes="line" if config.rope_mode == "1d" else known.video.axes,
            vision=frames,
            decoder=decoder,
            ids=lambda text: _ids(tokenizer, family, text),
            tokens_per_second=getattr(model.config.vision_config, "tokens_per_second", None),
            elapsed=config.rope_mode == "elapsed",
        )
    return VideoLanguageModel(
        family=family,
        network=model,
        decoder=decoder,
        frames=frames,
        video=video,
        tokenizer=tokenizer,
        prompts=prompts or known.prompts,
        end_tokens=frozenset(ends),
    )


def _ids(tokenizer: Tokenizer | None, family: str, text: str, *, start: bool = False) -> Tensor:
    if tokenizer is None:
        raise CheckpointMismatch(f"rekv: the {family} checkpoint has no tokenizer; put tokenizer.json into its folder")
    return torch.tensor(tokenizer.encode(text, start=start), dtype=torch.long)
