"""The paper's training loop: subsequences that are prompted again and again while their bank grows (spec section 5).

One update is one iteration of an episode: draw prompts, encode them, read bank and prompts in all windows, learn, then keep the
prompts' tokens (detached, from the weights before the update). Ours: ids permuted for a share of the subsequences, and a share
of updates without any memory. All of an episode stands in ``state``, so that a stopped training goes on with the same bits.
"""

# B subsequences, L samples of each, W windows of each, P prompts, T samples of a window, C channels, D width, K states

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.memprompttss.losses import agreement, window_losses
from models.memprompttss.model import LABEL, MemPromptTSS, Prompts
from models.memprompttss.sampling import PromptMix, contexts, draw_prompts, random_centers

__all__ = ["Episodes", "LoopSettings", "remember", "window_tokens"]

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor]]
"""Draws a batch: samples [B, L, C] and states [B, L]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """How episodes go. Defaults: the paper's, but for the two shares that are ours."""

    iterations: int = 8
    prompts: int = 4
    """Of a subsequence in one iteration."""
    permute: float = 0.0
    """Share of subsequences whose ids are renamed at random, so that only prompts tell them."""
    without: float = 0.0
    """Share of (subsequence, update) that reads an empty bank."""
    few: float = 0.0
    """Share that reads one of its newest prompts only, so that a single one is learned to be read, too."""
    pool: int = 0
    """Above 0: each subsequence reads up to so many prompts, drawn from those of the whole batch. As in a stream, most are
    about elsewhere then, and often none names what is there. Those with renamed ids share one renaming of some of the states
    and read the prompts of one another: what is alike has one name. A new name that no prompt tells is not learned."""
    agreement: float = 0.0
    """Above 0: all windows are learned without prompts, too, and what they say with prompts is drawn towards that by so much,
    but for renamed ids. Where a prompt tells nothing that the training does not know, both ways else part on new data."""
    mix: PromptMix = field(default_factory=PromptMix)


def window_tokens(model: MemPromptTSS, x_BLC: Tensor) -> Tensor:
    """Return the tokens of all windows of subsequences, [B * W, P, D], those of one subsequence together."""
    config = model.config
    x_BWTC = x_BLC.unfold(1, config.window, config.stride).transpose(2, 3)
    if config.encoder_axis == "time":
        tokens: Tensor = model.ts_encoder(x_BWTC.flatten(0, 1))
        return tokens
    # As released: windows of one number are a batch.
    return torch.stack([model.ts_encoder(x_BWTC[:, w]) for w in range(x_BWTC.shape[1])], dim=1).flatten(0, 1)


def remember(model: MemPromptTSS, x_BLC: Tensor, center_BP: Tensor, prompts: Prompts) -> Tensor:
    """Return the memory tokens [B, P, D] of prompts [B, P] about samples of their subsequences."""
    around = contexts(x_BLC, center_BP, model.config.context).flatten(0, 1)
    flat = Prompts(*(part.flatten() for part in (prompts.kind, prompts.state, prompts.boundary, prompts.incorrect)))
    return model.remember(flat, around).view(*center_BP.shape, -1)


class Episodes:
    """The losses of one update after another."""

    def __init__(
        self,
        model: MemPromptTSS,
        draw: Draw,
        settings: LoopSettings,
        generator: torch.Generator,
        state: dict[str, Any],
        device: torch.device | str = "cpu",
    ) -> None:
        """``state``: the stage's, where a resumed training finds the episode that was going on."""
        self.model, self.settings, self.state, self.device = model, settings, state, device
        self._draw, self._generator = draw, generator

    def losses(self, step: int) -> Iterator[Mapping[str, Tensor]]:
        """Yield the loss of one iteration."""
        with self._own_dropout():
            parts = self._parts(step)
        yield parts

    @contextlib.contextmanager
    def _own_dropout(self) -> Iterator[None]:
        """Let the block drop what the episodes' generator says: PyTorch's own belongs to the process, whatever else it did."""
        if not self.model.config.dropout:
            yield
            return
        device = torch.device(self.device)
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=self._generator)))
            yield

    def _parts(self, step: int) -> dict[str, Tensor]:
        settings, generator, model = self.settings, self._generator, self.model
        if step % settings.iterations == 0:
            self._begin()
        x_BLC, state_BL, permuted_B, bank_BND = (self.state[name] for name in ("x", "state", "permuted", "bank"))
        center_BP = random_centers(state_BL, settings.prompts, model.config.context, settings.mix, generator)
        prompts = draw_prompts(state_BL, center_BP, model.config.classes, settings.mix, generator)
        without_B = torch.rand(len(x_BLC), generator=generator) < settings.without
        says_BP = torch.where((prompts.kind == LABEL) & (prompts.incorrect == 0), prompts.state, -1)
        self.state["says"] = torch.cat([self.state["says"], says_BP], dim=1)
        device = self.device
        prompts = Prompts(*(p.to(device) for p in (prompts.kind, prompts.state, prompts.boundary, prompts.incorrect)))
        token_BPD = remember(model, x_BLC.to(device), center_BP, prompts)
        m_BND = torch.cat([bank_BND.to(device), token_BPD], dim=1)
        self.state["bank"] = torch.cat([bank_BND, token_BPD.detach().cpu()], dim=1)
        tokens = window_tokens(model, x_BLC.to(device))
        windows = len(tokens) // len(x_BLC)
        of_W = torch.arange(len(x_BLC), device=device).repeat_interleave(windows)
        if settings.pool:
            index_BN, there_BN = self._pooled(permuted_B, m_BND.shape[1])
            m_BND = m_BND.flatten(0, 1)[index_BN.to(device)]
        else:
            few_B = torch.rand(len(x_BLC), generator=generator) < settings.few
            one_BN = torch.zeros(len(x_BLC), m_BND.shape[1], dtype=torch.bool)
            one_BN[:, -settings.prompts] = True
            there_BN = one_BN | ~few_B[:, None]
        there_BN &= ~without_B[:, None]
        mask_BN = None if bool(there_BN.all()) else there_BN.to(device)
        logits_BWTK = model.decode(tokens, m_BND, mask_BN, of_W).view(len(x_BLC), windows, model.config.window, -1)
        wanted_BWT = state_BL.unfold(1, model.config.window, model.config.stride).to(device)
        # What nothing tells cannot be learned: renamed ids without a prompt.
        told_B = ~permuted_B | there_BN.any(1)
        told_BWT = None
        if settings.pool:
            told_BL = self._told(torch.where(there_BN, self.state["says"].flatten()[index_BN], -1))
            told_BWT = told_BL.unfold(1, model.config.window, model.config.stride).to(device)
        parts = {"states": window_losses(logits_BWTK, wanted_BWT, told_B.to(device), told_BWT).mean()}
        if settings.agreement:
            silent_WTK = model.decode(tokens, m_BND[:1, :0], None, torch.zeros_like(of_W))
            silent_BWTK, known_B = silent_WTK.view(logits_BWTK.shape), (~permuted_B).to(device)
            parts["silent"] = window_losses(silent_BWTK, wanted_BWT, known_B).mean()
            parts["agreement"] = settings.agreement * agreement(logits_BWTK, silent_BWTK.detach(), known_B).mean()
        return parts

    def _pooled(self, permuted_B: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
        """Draw which of all prompts [B * prompts] each subsequence may read, and which of them it does, [B, N] each.

        How many are its own, and how many it reads, is drawn for each subsequence: from hardly any to most of them.
        """
        generator, B, N = self._generator, len(permuted_B), self.settings.pool
        same_BB = (permuted_B[:, None] == permuted_B).float()
        owner_BN = torch.multinomial(same_BB, N, replacement=True, generator=generator)
        is_own_BN = torch.rand(B, N, generator=generator) < 0.5 * torch.rand(B, 1, generator=generator)
        owner_BN = torch.where(is_own_BN, torch.arange(B)[:, None], owner_BN)
        there_BN = torch.rand(B, N, generator=generator) < torch.rand(B, 1, generator=generator)
        return owner_BN * prompts + torch.randint(prompts, (B, N), generator=generator), there_BN

    def _told(self, says_BN: Tensor) -> Tensor:
        """Return which samples, [B, L], have the name that they always have, or one that a prompt says."""
        state_BL, moved_BK = self.state["state"], self.state["moved"]
        said_BK = torch.zeros(len(says_BN), moved_BK.shape[1] + 1, dtype=torch.bool).scatter_(1, says_BN + 1, True)[:, 1:]
        told_BL: Tensor = (~moved_BK | said_BK).gather(1, state_BL)
        return told_BL

    def _begin(self) -> None:
        generator, classes = self._generator, self.model.config.classes
        x_BLC, state_BL = self._draw(generator)
        permuted_B = torch.rand(len(x_BLC), generator=generator) < self.settings.permute
        name_BK = torch.rand(len(x_BLC), classes, generator=generator).argsort(1)
        if self.settings.pool:
            name_BK = self._renaming().expand(len(x_BLC), -1)
        name_BK = torch.where(permuted_B[:, None], name_BK, torch.arange(classes))
        self.state |= {
            "x": x_BLC,
            "state": name_BK.gather(1, state_BL),
            "permuted": permuted_B,
            "moved": name_BK != torch.arange(classes),
            "says": torch.zeros(len(x_BLC), 0, dtype=torch.int64),
            "bank": torch.zeros(len(x_BLC), 0, self.model.config.width),
        }

    def _renaming(self) -> Tensor:
        """Draw new names [K]: two states or more pass theirs on in a circle."""
        generator, classes = self._generator, self.model.config.classes
        order_K = torch.randperm(classes, generator=generator)
        circle = order_K[: int(torch.randint(2, classes + 1, (1,), generator=generator))]
        name_K = torch.arange(classes)
        name_K[circle] = circle.roll(1)
        return name_K
