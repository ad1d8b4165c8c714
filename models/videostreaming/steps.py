"""The steps of an answer, compiled: a token of every question is one call, on a GPU one CUDA graph.

The library's static cache keeps keys and values at one place, one cache per bucket of questions and of text; what is not read
yet is computed, too, and masked.
"""

# B questions, b their bucket, M rows of a cache, V vocabulary

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from connectors.extras import optional
from models.compiled import bucket, compile_alone, padded

transformers = optional("transformers")

__all__ = ["CompiledSteps"]

_Step = Callable[[Tensor, Tensor, Tensor], Tensor]


class CompiledSteps:
    """Caches and compiled steps of one answering model. Answers one batch of questions at a time."""

    def __init__(self, language_model: Any) -> None:
        self._model = language_model
        self._made: dict[tuple[int, int], tuple[Any, _Step]] = {}

    @staticmethod
    def fit(language_model: Any) -> bool:
        """Tell whether the library says that a model can be compiled as a whole, and all its layers keep all keys."""
        kinds = set(getattr(language_model.config, "layer_types", None) or ())
        sliding = getattr(language_model.config, "sliding_window", None)
        return (
            bool(language_model._can_compile_fullgraph) and not kinds - {"full_attention"} and (bool(kinds) or sliding is None)
        )

    def reading(self, cache: Any, behind_B: Tensor, read: int, room: int) -> Callable[[Tensor], Tensor]:
        """Return what reads a token of each question and returns the logits [B, V] of the next, at most ``room`` times.

        ``cache``: the library's, of the ``read`` rows so far, of which the first ``behind_B`` are padding.
        """
        questions = len(behind_B)
        size = bucket(questions), bucket(read + room)
        if size not in self._made:
            self._made[size] = self._make(size[1])
        static, step = self._made[size]
        for to, of in zip(static.layers, cache.layers, strict=True):
            keys_bGnD, values_bGnD = padded(of.keys, size[0]), padded(of.values, size[0])
            if not to.is_initialized:
                to.lazy_initialization(keys_bGnD, values_bGnD)
            to.reset()
            to.keys[:, :, :read] = keys_bGnD
            to.values[:, :, :read] = values_bGnD
            to.cumulative_length.fill_(read)
        behind_b = padded(behind_B, size[0])
        place = torch.tensor(read, device=behind_B.device)

        def tokens(next_B: Tensor) -> Tensor:
            nonlocal place
            logits_bV = step(padded(next_B, size[0]), place, behind_b)
            place = place + 1
            return logits_bV[:questions].clone()  # the memory of a graph is used again by its next call

        return tokens

    def _make(self, rows: int) -> tuple[Any, _Step]:
        model = self._model
        cache = transformers.StaticCache(config=model.config, max_cache_len=rows)
        embed = model.get_input_embeddings()
        dtype = embed.weight.dtype

        def step(ids_b: Tensor, place: Tensor, behind_b: Tensor) -> Tensor:
            at_M = torch.arange(rows, device=place.device)
            hidden_bM = (at_M > place) | (at_M < behind_b[:, None])
            mask_bM = torch.zeros(hidden_bM.shape, dtype=dtype, device=place.device)
            output = model(
                inputs_embeds=embed(ids_b)[:, None],
                attention_mask=mask_bM.masked_fill(hidden_bM, torch.finfo(dtype).min)[:, None, None],
                position_ids=(place - behind_b)[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                return_dict=True,
            )
            logits_bV: Tensor = output.logits[:, -1].float()
            return logits_bV

        return cache, compile_alone(step, embed.weight.device, whole=True)
