"""Blocks of models that take frames of any size: their words, embeddings and layouts. Holds no stream."""

# T tokens of an image, C hidden size, J levels of deepstack features, n tokens of a block

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.rekv.config import Axes
from models.rekv.decoder import TextDecoder
from models.rekv.families import VideoForm
from models.rekv.layouts import BlockNumbers, Shape, VideoLayout
from models.rekv.qwen_vision import QwenVision

__all__ = ["VideoBlocks"]

_LATEST_S = 99_999_999.9  # three years: the longest text that a time becomes


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class VideoBlocks:
    """How a model lays out its video."""

    form: VideoForm
    axes: Axes
    """Those of ``form``, or ``line``."""
    vision: QwenVision
    decoder: TextDecoder
    ids: Callable[[str], Tensor]
    """Text to token ids."""
    tokens_per_second: int | None
    elapsed: bool

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest block."""
        return self.vision.frame_tokens + sum(len(ids_n) for ids_n in self._words(_LATEST_S))

    @property
    def least_tokens(self) -> int:
        """Tokens of the smallest block, words left out."""
        return max(self.vision.frame_tokens // 2, 1)

    def layout(self, numbers: BlockNumbers) -> VideoLayout:
        """Return the layout of a stream of which ``numbers`` has the blocks noted."""
        return VideoLayout(self.axes, self.most_tokens, numbers, self.tokens_per_second, self.elapsed)

    def block(self, features_TC: Tensor, height: int, width: int, seconds: float) -> tuple[Tensor, Shape]:
        """Return a block [n, (1 + J) C] of the tokens of frames of this size, in pixels, with its words, and its shape."""
        side = self.vision.side
        before_n, behind_n = self._words(seconds)
        shape = Shape(len(before_n), height // side, width // side, len(behind_n))
        if not shape.lead and not shape.tail:
            return features_TC, shape
        wide = features_TC.shape[1]
        words = [self.decoder.embed(ids_n).to(features_TC.dtype) for ids_n in (before_n, behind_n)]
        first, last = (torch.nn.functional.pad(embeds, (0, wide - embeds.shape[1])) for embeds in words)
        return torch.cat((first, features_TC, last)), shape

    def _words(self, seconds: float) -> tuple[Tensor, Tensor]:
        return self._ids(self.form.before.format(seconds=seconds)), self._ids(self.form.behind)

    def _ids(self, text: str) -> Tensor:
        return self.ids(text) if text else torch.empty(0, dtype=torch.long)
