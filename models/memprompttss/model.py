"""The network of MemPromptTSS: windows and a bank of prompt tokens in, logits of states out (spec section 3).

Holds weights only. The bank is handed in as tokens with a mask and never changed; what belongs to a stream is the operator's.
What depends on the bank alone is computed once per bank and shared by its windows.
"""

# B banks, W windows, R prompts, P patches, N tokens of a bank, T samples, C channels, D width, K states

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.memprompttss.config import MemPromptTSSConfig
from models.memprompttss.layers import Attention, FeedForward, TimeSeriesEncoder, coverage

__all__ = ["BOUNDARY", "LABEL", "MemPromptTSS", "Prompts"]

LABEL = 0
BOUNDARY = 1
"""Types of prompts."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of any shape [...]. ``state`` counts for labels, ``boundary`` for boundaries."""

    kind: Tensor
    """``LABEL`` or ``BOUNDARY``."""
    state: Tensor
    """0..K-1."""
    boundary: Tensor
    """1: a segment starts at this sample. 0: none does."""
    incorrect: Tensor
    """1: what the prompt says is declared false."""

    def labels(self, classes: int) -> Tensor:
        """Return the vectors [..., 2K]: "is k" in the first half, "is not k" in the second."""
        place = self.state.clamp(0, classes - 1) + self.incorrect * classes
        one = nn.functional.one_hot(place, 2 * classes).float()
        return one * (self.kind == LABEL)[..., None]


class PromptEncoder(nn.Module):
    """One prompt to one token (spec section 3.2)."""

    def __init__(self, config: MemPromptTSSConfig) -> None:
        super().__init__()
        width = config.width
        self.label_proj = nn.Linear(2 * config.classes, width)
        self.boundary_embed = nn.Embedding(2, width)
        self.type_embed = nn.Embedding(2, width)
        self.aspect_embed = nn.Embedding(2, width)

    def forward(self, kind: Tensor, labels: Tensor, boundary: Tensor, incorrect: Tensor) -> Tensor:
        """Return tokens [..., D] of ``kind`` [...], label vectors [..., 2K], boundary bits and aspects [...]."""
        is_label = (kind == LABEL)[..., None]
        content = torch.where(is_label, self.label_proj(labels), self.boundary_embed(boundary))
        token: Tensor = content + self.type_embed(kind) + self.aspect_embed(incorrect)
        return token


class _MemoryLayer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_q, self.ln_kv, self.ln_ff = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.ffn = FeedForward(width, dropout)

    def forward(self, q_R1D: Tensor, context_RPD: Tensor) -> Tensor:
        q_R1D = q_R1D + self.attn.attend(self.ln_q(q_R1D), self.attn.keys_values(self.ln_kv(context_RPD)))
        out: Tensor = q_R1D + self.ffn(self.ln_ff(q_R1D))
        return out


class MemoryEncoder(nn.Module):
    """A prompt's token and its context to the token that is remembered (spec section 3.3)."""

    def __init__(self, config: MemPromptTSSConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _MemoryLayer(config.width, config.heads, config.dropout) for _ in range(config.memory_layers)
        )

    def forward(self, prompt_RD: Tensor, context_RPD: Tensor) -> Tensor:
        """Return memory tokens [R, D]."""
        q_R1D = prompt_RD[:, None]
        for layer in self.layers:
            q_R1D = layer(q_R1D, context_RPD)
        return q_R1D[:, 0]


class DecoderBlock(nn.Module):
    """Windows read the bank, the bank's copy reads the windows (spec section 3.4)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_x_sa, self.ln_x_ca, self.ln_m_for_x, self.ln_x_ff = (nn.LayerNorm(width) for _ in range(4))
        self.ln_m_sa, self.ln_m_ca, self.ln_x_for_m, self.ln_m_ff = (nn.LayerNorm(width) for _ in range(4))
        self.x_self, self.x_from_m, self.m_self, self.m_from_x = (Attention(width, heads, dropout) for _ in range(4))
        self.ff_x, self.ff_m = FeedForward(width, dropout), FeedForward(width, dropout)

    def forward(
        self, x_WPD: Tensor, m_BND: Tensor, valid_BN: Tensor | None, of_W: Tensor | None, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return windows and their copies of the bank. ``of_W``: each window's bank; None: bank w is that of window w.

        ``last``: the bank is read no more, so its copies are returned as they came.
        """
        x_WPD = x_WPD + self.x_self.to_itself(self.ln_x_sa(x_WPD))
        kv_BN2D = self.x_from_m.keys_values(self.ln_m_for_x(m_BND))
        valid_WN = valid_BN
        if of_W is not None:
            kv_BN2D = kv_BN2D[of_W]
            valid_WN = None if valid_BN is None else valid_BN[of_W]
        x_WPD = x_WPD + self.x_from_m.attend(self.ln_x_ca(x_WPD), kv_BN2D, valid_WN)
        if not last and m_BND.shape[1]:
            m_BND = m_BND + self.m_self.to_itself(self.ln_m_sa(m_BND), valid_BN)
            m_WND = m_BND if of_W is None else m_BND[of_W]
            m_WND = m_WND + self.m_from_x.attend(self.ln_m_ca(m_WND), self.m_from_x.keys_values(self.ln_x_for_m(x_WPD)))
            m_BND = m_WND + self.ff_m(self.ln_m_ff(m_WND))
        return x_WPD + self.ff_x(self.ln_x_ff(x_WPD)), m_BND


class StateDecoder(nn.Module):
    """Tokens of windows and banks to logits of patches."""

    def __init__(self, config: MemPromptTSSConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DecoderBlock(config.width, config.heads, config.dropout) for _ in range(config.decoder_blocks)
        )
        self.ln_head = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, x_WPD: Tensor, m_BND: Tensor, valid_BN: Tensor | None = None, of_W: Tensor | None = None) -> Tensor:
        """Return logits [W, P, K] of the patches."""
        for number, block in enumerate(self.blocks):
            x_WPD, m_BND = block(x_WPD, m_BND, valid_BN, of_W, last=number == len(self.blocks) - 1)
            if of_W is not None and m_BND.shape[1]:  # from the first block on every window has its own copy
                valid_BN, of_W = (None if valid_BN is None else valid_BN[of_W]), None
        logits: Tensor = self.head(self.ln_head(x_WPD))
        return logits


class MemPromptTSS(nn.Module):
    """Encoder of windows, encoder of prompts, encoder of memory tokens, decoder of states."""

    cover_TP: Tensor

    def __init__(self, config: MemPromptTSSConfig) -> None:
        super().__init__()
        self.config = config
        self.prompt_encoder = PromptEncoder(config)
        self.ts_encoder = TimeSeriesEncoder(config)
        self.memory_encoder = MemoryEncoder(config)
        self.state_decoder = StateDecoder(config)
        cover = coverage(config.window, config.patches, config.patch, config.patch_stride)
        self.register_buffer("cover_TP", cover, persistent=False)

    def remember(self, prompts: Prompts, context_RTC: Tensor, *, alone: bool = False) -> Tensor:
        """Return the memory tokens [R, D] of prompts [R] with the samples around them."""
        token_RD = self.prompt_encoder(prompts.kind, prompts.labels(self.config.classes), prompts.boundary, prompts.incorrect)
        tokens: Tensor = self.memory_encoder(token_RD, self.ts_encoder(context_RTC, alone=alone))
        return tokens

    def decode(self, x_WPD: Tensor, m_BND: Tensor, valid_BN: Tensor | None = None, of_W: Tensor | None = None) -> Tensor:
        """Return logits [W, T, K] of encoded windows. ``of_W``: the bank of each window; None: bank w is that of window w."""
        patch_WPK = self.state_decoder(x_WPD, m_BND, valid_BN, of_W)
        logits_WTK: Tensor = self.cover_TP @ patch_WPK
        return logits_WTK

    def forward(self, x_WTC: Tensor, m_BND: Tensor, valid_BN: Tensor | None = None, of_W: Tensor | None = None) -> Tensor:
        """Encode windows and decode them."""
        return self.decode(self.ts_encoder(x_WTC), m_BND, valid_BN, of_W)
