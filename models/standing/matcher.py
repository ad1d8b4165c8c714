"""A small network that tells whether a frame shows what a text asks about, from features that a method has anyway.

Frame and text become vectors whose product is a logit, as in SigLIP (arXiv 2303.15343): a text is encoded once when it is
asked, and a frame costs one product with all of them. It belongs to the encoders that it was trained beside; its file names
them.
"""

# F frames, Q texts, X width of a frame's features, W width of a word, E width of the shared space

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from connectors.errors import CheckpointMismatch
from models.file_headers import make_header
from models.standing.header import FORMAT, MODEL, MatcherConfig, read_matcher
from models.weight_files import read_safetensors, weights_name, write_safetensors

__all__ = ["FrameMatcher", "encoder_name", "frame_vectors", "load_matcher", "save_matcher"]


class FrameMatcher(nn.Module):
    """Frames and texts to logits."""

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        self.config = config
        self.frame = _tower(config.frame_width, config.hidden, config.width)
        self.text = _tower(config.word_width, config.hidden, config.width + 1)  # the last one is the text's bias

    def frames(self, vectors_FX: Tensor) -> Tensor:
        """Return frames in the shared space, [F, E]."""
        projected: Tensor = self.frame(vectors_FX)
        return projected

    def texts(self, words: Sequence[Tensor]) -> Tensor:
        """Return texts in the shared space with their biases, [Q, E + 1]; ``words``: embeddings [n, W] of each."""
        return self.sums(torch.stack([words_nW.float().sum(dim=0) for words_nW in words]))

    def sums(self, sums_QW: Tensor) -> Tensor:
        """Return what ``texts`` does, from the sum of the embeddings of each text."""
        projected: Tensor = self.text(sums_QW)
        return projected

    def logits(self, vectors_FX: Tensor, texts_QE: Tensor) -> Tensor:
        """Return the logits [F, Q] of frames and what ``texts`` gave."""
        logits: Tensor = self.frames(vectors_FX) @ texts_QE[:, :-1].T + texts_QE[:, -1]
        return logits


def _tower(wide: int, hidden: int, narrow: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, narrow))


def frame_vectors(features: Sequence[Tensor]) -> Tensor:
    """Return what the matcher reads of frames [F, X]: their tokens [T, C] each, one behind the other."""
    return torch.stack([tokens_TC.float().flatten() for tokens_TC in features])


def encoder_name(words_VW: Tensor) -> str:
    """Return a name of the encoders that a matcher belongs to, told by their table of words [V, W]."""
    return weights_name("words", list(words_VW.shape), {"words": words_VW})


def save_matcher(matcher: FrameMatcher, path: str | os.PathLike[str], *, encoders: str) -> None:
    """Write one safetensors file."""
    header = make_header(MODEL, FORMAT, config=dataclasses.asdict(matcher.config), encoders=encoders)
    write_safetensors(dict(matcher.state_dict()), header, Path(path))


def load_matcher(path: str | os.PathLike[str], *, encoders: str) -> FrameMatcher:
    """Read what :func:`save_matcher` wrote. Raises ``CheckpointMismatch`` for any other file, or one for other ``encoders``."""
    file = Path(path)
    config, metadata = read_matcher(file)
    if metadata.get("encoders") != encoders:
        raise CheckpointMismatch(
            f"{file}: was trained beside the model {metadata.get('encoders')}, this one is {encoders}; train a matcher for "
            "this checkpoint, or give the checkpoint it was trained beside"
        )
    matcher = FrameMatcher(config)
    try:
        matcher.load_state_dict(read_safetensors(file)[0])
    except RuntimeError as error:
        raise CheckpointMismatch(f"{file}: {error}; train it again") from error
    return matcher.eval().requires_grad_(False)
