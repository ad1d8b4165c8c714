"""Clips to memories and indicators, questions to indicators (paper section 3.1 and 3.2). States are arguments and results.

Clips of different streams go through the encoder together, padded behind their ends, where causal attention does not look.
Clips of one stream come one after the other, since each sees the memory of the one before.
"""

# B clips or questions, T frames of a clip, N tokens per frame, C width of a token, M memory tokens, D width, n tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.videostreaming.model import VideoStreamingModel
from models.videostreaming.tokens import global_token, pool_summaries

__all__ = ["Clip", "EncodedClip", "clip_embeds", "encode_clips", "encode_questions", "prefix_hidden", "prefix_mask"]


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """What a clip is encoded from."""

    features_TNC: Tensor
    """Tokens of its frames; T may be less than a full clip's."""
    time_ids_n: Tensor
    """The time prompt as the encoder's token ids; may be empty."""
    memory_MD: Tensor | None
    """Of the clip before; None for the first one."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedClip:
    """The memory [M, D] of a clip, M = T * P of its real frames, and its indicator [D]."""

    memory_MD: Tensor
    indicator_D: Tensor


def clip_embeds(model: VideoStreamingModel, clips: Sequence[Clip]) -> list[Tensor]:
    """Return what the encoder reads of each clip, [n, D]: time prompt, memory, frames, summaries, global token."""
    config = model.config
    raw = []
    for clip in clips:
        features = clip.features_TNC.to(device=model.device, dtype=model.dtype)
        summaries = (
            pool_summaries(features, config.frame_summaries)
            if model.summary_table is None
            else model.summary_table[: len(features) * config.frame_summaries].to(model.dtype)
        )
        raw.append(torch.cat((features.flatten(0, 1), summaries, global_token(features))))
    projected = torch.split(model.mm_projector(torch.cat(raw)), [len(rows) for rows in raw])
    embeds = []
    for clip, rows in zip(clips, projected, strict=True):
        before = [model.embed(clip.time_ids_n)]
        if clip.memory_MD is not None and config.propagate:
            before.append(clip.memory_MD.to(device=model.device, dtype=model.dtype))
        embeds.append(torch.cat((*before, rows)))
    return embeds


def encode_clips(model: VideoStreamingModel, clips: Sequence[Clip]) -> list[EncodedClip]:
    """Encode clips together, each as if it were alone, with gradients where parameters want them."""
    embeds = clip_embeds(model, clips)
    hidden_BnD = model.encode(_padded(embeds))
    encoded = []
    for clip, rows, hidden_nD in zip(clips, embeds, hidden_BnD, strict=True):
        last = len(rows) - 1
        summaries = len(clip.features_TNC) * model.config.frame_summaries
        encoded.append(EncodedClip(hidden_nD[last - summaries : last], hidden_nD[last]))
    return encoded


def encode_questions(
    model: VideoStreamingModel, memories: Sequence[Tensor | None], question_ids: Sequence[Tensor]
) -> list[Tensor]:
    """Return the indicator [D] of each question: the last position of [newest memory | question]."""
    embeds = []
    for memory_MD, ids_n in zip(memories, question_ids, strict=True):
        before = [] if memory_MD is None else [memory_MD.to(device=model.device, dtype=model.dtype)]
        embeds.append(torch.cat((*before, model.embed(ids_n))))
    hidden_BnD = model.encode(_padded(embeds))
    return [hidden_nD[len(rows) - 1] for rows, hidden_nD in zip(embeds, hidden_BnD, strict=True)]


def _padded(embeds: Sequence[Tensor]) -> Tensor:
    return embeds[0].unsqueeze(0) if len(embeds) == 1 else pad_sequence(list(embeds), batch_first=True)


# The prefix task of the first training stage


def prefix_mask(frames: int, summaries: int, text: int) -> Tensor:
    """Return who sees whom, [n, n] bool, of frame tokens, summary tokens and text: causal, but text sees no frame token.

    So the text gets the clip through the summaries only (paper section 3.3).
    """
    n = frames + summaries + text
    sees_nn = torch.ones(n, n, dtype=torch.bool).tril()
    sees_nn[frames + summaries :, :frames] = False
    return sees_nn


def prefix_hidden(model: VideoStreamingModel, features_BTNC: Tensor, text_ids_Bn: Tensor) -> Tensor:
    """Return the encoder's output [B, n, D] for [frames | summaries | text] under the prefix mask.

    No time, no memory, no global token: the task of the first training stage.
    """
    config, (clips, frames, tokens, _) = model.config, features_BTNC.shape
    features = features_BTNC.to(device=model.device, dtype=model.dtype)
    if model.summary_table is None:
        summaries = torch.stack([pool_summaries(one, config.frame_summaries) for one in features])
    else:
        table = model.summary_table[: frames * config.frame_summaries].to(model.dtype)
        summaries = table.expand(clips, -1, -1)
    projected = model.mm_projector(torch.cat((features.flatten(1, 2), summaries), dim=1))
    embeds_BnD = torch.cat((projected, model.embed(text_ids_Bn)), dim=1)
    sees_nn = prefix_mask(frames * tokens, summaries.shape[1], text_ids_Bn.shape[1]).to(model.device)
    hidden = torch.zeros(sees_nn.shape, dtype=embeds_BnD.dtype, device=model.device)
    hidden.masked_fill_(~sees_nn, torch.finfo(embeds_BnD.dtype).min)
    return model.encode(embeds_BnD, hidden.expand(clips, 1, -1, -1))
