"""A video-language model ready for ReKV, from a local folder: decoder, frame encoder, tokenizer, prompts.

LLaVA-OneVision, Video-LLaVA and InternVL take frames; of the Qwen-VL family the text decoder is used (experimental: paper
and code do not define its 3-D positions), with frame features given by the caller.
"""

# F frames, T tokens per frame, C hidden size, n tokens

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch
from models.prompts import PromptTemplate
from models.rekv.checkpoint import load_checkpoint, read_model_type
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_prefix
from models.rekv.prompts import PROMPTS
from models.rekv.session import Prefix
from models.rekv.small import SMALL_UNSURE_BELOW, SMALL_WEIGHTS, load_small
from models.rekv.vision import FrameEncoder
from models.tokenizers import FolderTokenizer, Tokenizer

__all__ = ["VideoLanguageModel", "load_model", "wrap_model"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class VideoLanguageModel:
    """Everything that answering from frames needs, weights included; no stream."""

    family: str
    decoder: TextDecoder
    frames: FrameEncoder | None
    """None for the Qwen-VL family."""
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
        if self.tokenizer is None:
            raise CheckpointMismatch(f"rekv: the {self.family} checkpoint has no tokenizer; put tokenizer.json into its folder")
        return torch.tensor(self.tokenizer.encode(text, start=start), dtype=torch.long)

    def unknown(self, text: str) -> list[str]:
        """Return the words of a text that the tokenizer cannot tell apart from others."""
        return [] if self.tokenizer is None else self.tokenizer.unknown(text)


def load_model(
    checkpoint: str | os.PathLike[str],
    config: ReKVConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> VideoLanguageModel:
    """Load a checkpoint folder of a supported family, or the file of a small model.

    ``dtype`` None keeps the checkpoint's. Raises ``CheckpointMismatch`` or ``ConfigError``.
    """
    path = Path(checkpoint)
    if path.is_file():
        small = load_small(path)
        ready = small.model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        wrapped = wrap_model(ready, "llava_onevision", config, small.tokenizer, small.prompts)
        return dataclasses.replace(wrapped, unsure_below=SMALL_UNSURE_BELOW if path.resolve() == SMALL_WEIGHTS else 0.0)
    model = load_checkpoint(path, device=device, dtype=dtype)
    tokenizer = FolderTokenizer(path) if (path / "tokenizer_config.json").exists() else None
    return wrap_model(model, read_model_type(path), config, tokenizer)


def wrap_model(
    model: Any,
    family: str,
    config: ReKVConfig,
    tokenizer: Tokenizer | None = None,
    prompts: PromptTemplate | None = None,
) -> VideoLanguageModel:
    """Wrap a model of transformers that is in memory; ``prompts`` None takes the family's.

    The attention of its decoder is switched to ReKV's.
    """
    decoder = TextDecoder.of(model.model.language_model, model.lm_head, config)
    ends: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, model.config.text_config):
        end = getattr(source, "eos_token_id", None)
        ends |= set() if end is None else {end} if isinstance(end, int) else set(end)
    frames = None if "qwen" in family else FrameEncoder.of(model, family)
    return VideoLanguageModel(
        family=family,
        decoder=decoder,
        frames=frames,
        tokenizer=tokenizer,
        prompts=prompts or PROMPTS[family],
        end_tokens=frozenset(ends),
    )
