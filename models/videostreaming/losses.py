"""The losses of the three training stages (paper section 3.3): text through summaries, answers through selected memories.

Stage 1 is one clip under the prefix mask; stage 2 is a stream of clips, each behind the memory of the one before, with
questions that select memories by the Gumbel top-k. Gradients flow through the memories of at most ``bptt_clips`` clips.
"""

# B streams, K clips, T frames, N tokens per frame, C width, Q questions, M memory tokens, D width, n tokens, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from models.answer_loss import answer_loss, pack
from models.videostreaming.answering import Shown, shown_embeds
from models.videostreaming.encoding import Clip, encode_clips, encode_questions, prefix_hidden
from models.videostreaming.loaders import VideoStreaming
from models.videostreaming.selection import gumbel_noise, gumbel_top, selection_loss, similarities, stored_indicator

__all__ = ["Asked", "EncodedStreams", "Selecting", "StreamLoss", "encode_streams", "prefix_loss", "stream_loss"]

_IGNORED = -100


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A question about a stream in training."""

    stream: int
    question: str
    answer: str
    relevant_K: Tensor
    """Which clips hold the answer."""
    hidden: range = range(0)
    """Clips that are not shown to the answering model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selecting:
    """How memories are selected in training."""

    temperature: float = 1.0
    forced: float = 0.0
    """Share of the questions whose relevant clips are among the selected in any case."""
    weight: float = 1.0
    """Of the temporal supervision; 0: none."""
    among_hidden: bool = False
    """The supervision tells the relevant clips from hidden ones, too."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamLoss:
    """What a pass over streams and questions gives."""

    parts: dict[str, Tensor]
    right_Q: Tensor
    """Whether every token of an answer was the most likely one."""
    found_Q: Tensor
    """Whether a relevant clip is among the most similar ones."""


def prefix_loss(ready: VideoStreaming, features_BTNC: Tensor, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
    """Return the next-token loss of the answers in the prefix task: the text sees the summaries, not the frames."""
    model, tokenizer = ready.model, ready.encoder_tokenizer
    assert model.encoder_head is not None
    end = next(iter(ready.end_tokens))
    prompts = [tokenizer.encode(question) for question in questions]
    wanted = [[*tokenizer.encode(answer), end] for answer in answers]
    rows = [torch.tensor([*prompt, *answer[:-1]]) for prompt, answer in zip(prompts, wanted, strict=True)]
    targets = [torch.tensor([_IGNORED] * (len(prompt) - 1) + answer) for prompt, answer in zip(prompts, wanted, strict=True)]
    text_Bn = pad_sequence(rows, batch_first=True)
    target_Bn = pad_sequence(targets, batch_first=True, padding_value=_IGNORED).to(model.device)
    hidden = prefix_hidden(model, features_BTNC, text_Bn)[:, -text_Bn.shape[1] :]
    asked_Bn = target_Bn != _IGNORED
    return cross_entropy(model.encoder_head(hidden[asked_Bn]).float(), target_Bn[asked_Bn])


@dataclass(slots=True, eq=False)
class EncodedStreams:
    """Memories and indicators of streams of equal length."""

    memories: list[list[Tensor]] = field(default_factory=list)
    """Per clip, per stream [M, D]."""
    indicators: list[Tensor] = field(default_factory=list)
    """Per clip [B, D]."""


def encode_streams(
    ready: VideoStreaming,
    features: Sequence[Sequence[Tensor]] | Tensor,
    times_s: Sequence[Sequence[tuple[float, float]]],
    *,
    bptt_clips: int = 8,
    first: bool = True,
    propagate: bool = True,
    learned_from: int = 0,
) -> EncodedStreams:
    """Encode streams of equal length clip after clip, together.

    ``features[b][k]``: [T, N, C] of a clip; ``times_s[b][k]``: its start and end.

    ``first`` False: the streams begin somewhere in the middle, so that even their first clips are told of a history.
    ``propagate`` False: clips see nothing of each other, and all are encoded at once. ``learned_from``: clips before this one
    are encoded without gradients; so memories that are handed on for long cost little.
    """
    model, encoded = ready.model, EncodedStreams()
    if not propagate:
        streams, clips_each = len(features), len(features[0])
        every = [
            Clip(features[b][k], ready.time_ids(*times_s[b][k], first=first and k == 0), None)
            for k in range(clips_each)
            for b in range(streams)
        ]
        done = encode_clips(model, every)
        for k in range(clips_each):
            part = done[k * streams : (k + 1) * streams]
            encoded.memories.append([one.memory_MD for one in part])
            encoded.indicators.append(torch.stack([one.indicator_D for one in part]))
        return encoded
    before: list[Tensor | None] = [None] * len(features)
    for k in range(len(features[0])):
        if k and k % bptt_clips == 0:
            before = [None if memory is None else memory.detach() for memory in before]
        clips = [
            Clip(features[b][k], ready.time_ids(*times_s[b][k], first=first and k == 0), memory)
            for b, memory in enumerate(before)
        ]
        with torch.set_grad_enabled(torch.is_grad_enabled() and k >= learned_from):
            done = encode_clips(model, clips)
        before = [one.memory_MD for one in done]
        encoded.memories.append([one.memory_MD for one in done])
        encoded.indicators.append(torch.stack([one.indicator_D for one in done]))
    return encoded


def stream_loss(
    ready: VideoStreaming,
    encoded: EncodedStreams,
    times_s: Sequence[Sequence[tuple[float, float]]],
    asked: Sequence[Asked],
    selecting: Selecting,
    generator: torch.Generator,
) -> StreamLoss:
    """Return the losses of questions about encoded streams: of their answers, and of the selection where it is supervised."""
    model, config, tokenizer = ready.model, ready.config, ready.tokenizer
    clips = len(encoded.memories)
    stored_KBD = torch.stack([stored_indicator(row_BD, config.similarity) for row_BD in encoded.indicators])
    newest = [encoded.memories[-1][one.stream] for one in asked]
    indicators = encode_questions(model, newest, [ready.asked_ids(one.question) for one in asked])
    hidden_QK = torch.tensor([[k in one.hidden for k in range(clips)] for one in asked])
    scores_QK = torch.stack(
        [
            similarities(indicator_D, stored_KBD[:, one.stream], config.similarity)
            for one, indicator_D in zip(asked, indicators, strict=True)
        ]
    )
    shown_QK = scores_QK.masked_fill(hidden_QK.to(model.device), -torch.inf)
    relevant_QK = torch.stack([one.relevant_K for one in asked]).to(model.device)
    noise_QK = gumbel_noise(tuple(scores_QK.shape), generator).to(model.device)
    forced_Q = (torch.rand(len(asked), generator=generator) < selecting.forced).to(model.device)
    noise_QK = noise_QK + 1e4 * (forced_Q[:, None] & relevant_QK)  # above all others, whatever their scores
    count = config.select_clips
    chosen_QK, _ = gumbel_top(
        shown_QK, count, noise_BK=noise_QK, temperature=selecting.temperature, scale=model.sim_scale.clamp(min=1.0)
    )
    features = [
        _selected(ready, encoded, one, chosen_K, times_s[one.stream]) for one, chosen_K in zip(asked, chosen_QK, strict=True)
    ]
    end = next(iter(ready.end_tokens))
    prompts = [tokenizer.encode(ready.prompts.open_ended(one.question)) for one in asked]
    answers = [[*tokenizer.encode(one.answer), end] for one in asked]
    language = model.language_model
    batch = pack(language.model, tokenizer.encode(ready.prompts.prefix, start=True), features, prompts, answers)
    output = answer_loss(language.model, language.lm_head, batch)
    parts = {"answers": output.loss}
    if selecting.weight:
        known_Q = relevant_QK.any(dim=1)
        told_QK = scores_QK if selecting.among_hidden else shown_QK
        loss_Q = selection_loss(told_QK, relevant_QK, scale=model.sim_scale.clamp(min=1.0))
        parts["selection"] = selecting.weight * loss_Q[known_Q].sum() / known_Q.sum().clamp(min=1)
    top_QV = scores_QK.detach().topk(min(count, clips), dim=1).indices
    return StreamLoss(parts, output.right_B, relevant_QK.gather(1, top_QV).any(dim=1))


def _selected(
    ready: VideoStreaming, encoded: EncodedStreams, one: Asked, chosen_K: Tensor, times_s: Sequence[tuple[float, float]]
) -> Tensor:
    """Return what the answering model reads of a stream: memories times their ones, which carry the gradient of the choice."""
    shown = [
        Shown(ready.shown_ids(*times_s[k]), encoded.memories[k][one.stream] * chosen_K[k])
        for k in chosen_K.detach().round().nonzero().flatten().tolist()
    ]
    return shown_embeds(ready.model, shown)
