"""From selected memories to an answer: what the answering model reads, and the reading itself (paper section 3.2).

Questions are answered together, padded before their beginnings; each is answered as if it were alone. Nothing is kept.
"""

# B questions, n tokens, M memory tokens, D width of a memory, C width of the answering model, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.greedy import greedy
from models.videostreaming.model import VideoStreamingModel
from models.videostreaming.steps import CompiledSteps

__all__ = ["Prompt", "Shown", "answer_prompts", "prompt_embeds", "shown_embeds"]


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A memory that the answering model sees: the ids of its time as text (may be empty), and its tokens [M, D]."""

    time_ids_n: Tensor
    memory_MD: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One question as the answering model gets it, token ids of its own vocabulary."""

    prefix_ids_n: Tensor
    shown: Sequence[Shown]
    """In the order of time."""
    text_ids_n: Tensor
    """The question, and what follows it."""


def shown_embeds(model: VideoStreamingModel, shown: Sequence[Shown]) -> Tensor:
    """Return the embeddings [n, C] of selected memories, each behind its time."""
    embed = model.language_model.get_input_embeddings()
    if not shown:
        return embed(torch.empty(0, dtype=torch.long, device=model.device))  # type: ignore[no-any-return]
    memories = torch.cat([one.memory_MD for one in shown]).to(device=model.device, dtype=model.dtype)
    projected = torch.split(model.memory_projector(memories), [len(one.memory_MD) for one in shown])
    parts = [
        part
        for one, rows in zip(shown, projected, strict=True)
        for part in (embed(one.time_ids_n.to(model.device)), rows.to(embed.weight.dtype))
    ]
    return torch.cat(parts)


def prompt_embeds(model: VideoStreamingModel, prompt: Prompt, shown_nC: Tensor | None = None) -> Tensor:
    """Return everything that the answering model reads before it answers, [n, C]. ``shown_nC``: its memories, where known."""
    embed = model.language_model.get_input_embeddings()
    before, after = (embed(ids_n.to(model.device)) for ids_n in (prompt.prefix_ids_n, prompt.text_ids_n))
    return torch.cat((before, shown_embeds(model, prompt.shown) if shown_nC is None else shown_nC, after))


@torch.inference_mode()
def answer_prompts(
    model: VideoStreamingModel,
    prompts: Sequence[Prompt],
    limits: Sequence[int],
    end_tokens: Collection[int],
    steps: list[Tensor] | None = None,
    compiled: CompiledSteps | None = None,
) -> tuple[list[list[int]], list[float]]:
    """Answer greedily; see :func:`models.greedy.greedy`. ``compiled``: of this model, takes the steps after the first token."""
    shown: dict[tuple[int, ...], Tensor] = {}  # many may be shown the same
    embeds = []
    for prompt in prompts:
        key = tuple(map(id, prompt.shown))
        if key not in shown:
            shown[key] = shown_embeds(model, prompt.shown)
        embeds.append(prompt_embeds(model, prompt, shown[key]))
    reading = _Reading(model.language_model, [len(rows) for rows in embeds], model.device, max(limits), compiled)
    longest = max(len(rows) for rows in embeds)
    padded_BnC = torch.stack([torch.nn.functional.pad(rows, (0, 0, longest - len(rows), 0)) for rows in embeds])
    return greedy(reading.embeds(padded_BnC), reading.tokens, limits, end_tokens, steps)


class _Reading:
    """A batch of texts that the answering model reads on and on, with the library's cache of keys and values."""

    def __init__(
        self,
        language_model: Any,
        lengths: Sequence[int],
        device: torch.device,
        room: int,
        compiled: CompiledSteps | None,
    ) -> None:
        self._model, self._cache = language_model, None
        self._room, self._compiled = room, compiled
        self._step: Callable[[Tensor], Tensor] | None = None
        longest = max(lengths)
        ragged = len(set(lengths)) > 1
        self._behind_B = torch.tensor([longest - length for length in lengths], device=device)  # padding
        self._read = 0
        self._ragged = ragged

    def tokens(self, next_B: Tensor) -> Tensor:
        """Read a token of each; return the logits [B, V] of the next."""
        if self._compiled is not None:
            if self._step is None:
                self._step = self._compiled.reading(self._cache, self._behind_B, self._read, self._room)
            return self._step(next_B)
        return self.embeds(self._model.get_input_embeddings()(next_B).unsqueeze(1))

    def embeds(self, embeds_BnC: Tensor) -> Tensor:
        """Read embeddings; return the logits [B, V] behind the last."""
        count = embeds_BnC.shape[1]
        place_n = torch.arange(self._read, self._read + count, device=embeds_BnC.device)
        self._read += count
        position_Bn = (place_n - self._behind_B[:, None]).clamp(min=0)
        seen_Bn = torch.arange(self._read, device=embeds_BnC.device) >= self._behind_B[:, None]
        output = self._model(
            inputs_embeds=embeds_BnC,
            attention_mask=seen_Bn.long() if self._ragged else None,
            position_ids=position_Bn,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        self._cache = output.past_key_values
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV
