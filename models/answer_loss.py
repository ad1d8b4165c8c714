"""Visual instruction tuning: prefix, frame tokens, prompt and answer in one sequence, next-token loss on the answer only.

The ordinary training of a video-language model, with full causal attention, whatever the frame tokens are: patches of frames,
or memories of clips.
"""

# B samples, n tokens of the longest sequence, F frames, T tokens per frame, C hidden size, V vocabulary, A answer tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["AnswerLoss", "Packed", "answer_loss", "pack"]

_IGNORED = -100


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Sequences of one batch, padded behind their ends, where causal attention does not look."""

    embeds_BnC: Tensor
    targets_Bn: Tensor
    """The token that follows each position if it is one of the answer."""


@dataclass(frozen=True, slots=True, eq=False)
class AnswerLoss:
    """What a pass over a batch gives."""

    loss: Tensor
    """Mean over all answer tokens."""
    right_B: Tensor
    """Whether every token of an answer was the most likely one."""
    hidden_states: tuple[Tensor, ...]
    """The input of each layer, and the last one's output, [B, n, C]; empty unless asked for."""
    said: tuple[Tensor, ...]
    """Of each answer its tokens as the most likely ones, each behind the right ones before it, [A of the answer]."""


def pack(
    decoder: Any,
    prefix: Sequence[int],
    features: Sequence[Tensor],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> Packed:
    """Put a batch together: token ids, and frame tokens [F T, C] per sample. Answers end with the end token."""
    embed, device = decoder.get_input_embeddings(), features[0].device
    rows, targets = [], []
    for frames_nC, prompt, answer in zip(features, prompts, answers, strict=True):
        before = embed(torch.tensor(prefix, dtype=torch.long, device=device))
        text = embed(torch.tensor([*prompt, *answer[:-1]], dtype=torch.long, device=device))
        rows.append(torch.cat((before, frames_nC.to(before.dtype), text)))
        silent = len(prefix) + len(frames_nC) + len(prompt) - 1
        targets.append(torch.tensor([_IGNORED] * silent + list(answer), device=device))
    pad = nn.utils.rnn.pad_sequence
    return Packed(pad(rows, batch_first=True), pad(targets, batch_first=True, padding_value=_IGNORED))


def answer_loss(decoder: Any, head: nn.Module, batch: Packed, *, hidden_states: bool = False) -> AnswerLoss:
    """Run the decoder (with its own attention) over a batch; the head sees the answers' positions only."""
    output = decoder(inputs_embeds=batch.embeds_BnC, use_cache=False, output_hidden_states=hidden_states)
    asked_Bn = batch.targets_Bn != _IGNORED
    logits_AV = head(output.last_hidden_state[asked_Bn]).float()
    wanted_A = batch.targets_Bn[asked_Bn]
    wrong_Bn = torch.zeros_like(asked_Bn)
    said_A = logits_AV.detach().argmax(dim=-1)
    wrong_Bn[asked_Bn] = said_A != wanted_A
    said = torch.split(said_A, asked_Bn.sum(dim=1).tolist())
    return AnswerLoss(cross_entropy(logits_AV, wanted_A), ~wrong_Bn.any(dim=1), output.hidden_states or (), said)
