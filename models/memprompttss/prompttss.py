"""PromptTSS (arXiv 2506.11170), the predecessor: prompts about samples of the window that is decoded, and no memory.

Only what its golden vectors and its checkpoints need: the network. Prompts become a dense embedding of the window's samples.
"""

# B windows, T samples, C channels, P patches, D width, K states

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.memprompttss.config import PromptTSSConfig
from models.memprompttss.layers import Attention, TimeSeriesEncoder, normalize

__all__ = ["PromptTSS"]


class _PromptEncoder(nn.Module):
    def __init__(self, config: PromptTSSConfig) -> None:
        super().__init__()
        self.boundary_embedding = nn.Embedding(2, config.width)
        self.label_embedding = nn.Linear(2 * config.classes, config.width)

    def forward(self, label_BTL: Tensor, boundary_BT: Tensor) -> Tensor:
        """Embed prompts of every sample."""
        has_label_BT1 = (label_BTL != 0).any(2, keepdim=True)
        has_boundary_BT1 = (boundary_BT >= 0)[:, :, None]
        label_BTD: Tensor = self.label_embedding(label_BTL) * has_label_BT1
        boundary_BTD: Tensor = self.boundary_embedding(boundary_BT.clamp_min(0)) * has_boundary_BT1
        return label_BTD + boundary_BTD


class PromptDecoderBlock(nn.Module):
    """Prompts read themselves and the series, then the series reads the prompts."""

    def __init__(self, config: PromptTSSConfig) -> None:
        super().__init__()
        width = config.width
        self.prompt_self_attention = Attention(width, config.heads, config.dropout)
        self.prompt_to_series_attention = Attention(width, config.heads, config.dropout)
        self.series_to_prompt_attention = Attention(width, config.heads, config.dropout)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))
        self.mlp_prompt = nn.Sequential(nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, width))

    def forward(self, prompt_BTD: Tensor, series_BPD: Tensor, place_TD: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
        """Return prompts and series. As released: no residual around the first attention, and no places in that of block 0.

        Patch j has the place of sample j, though it starts at sample j * patch_stride.
        """
        at_TD, at_PD = place_TD[: prompt_BTD.shape[1]], place_TD[: series_BPD.shape[1]]
        placed_BTD = prompt_BTD if first else prompt_BTD + at_TD
        prompt_BTD = self.norm1(self.prompt_self_attention.attend_apart(placed_BTD, placed_BTD, prompt_BTD))
        read = self.prompt_to_series_attention.attend_apart(prompt_BTD + at_TD, series_BPD + at_PD, series_BPD)
        prompt_BTD = self.norm2(prompt_BTD + read)
        prompt_BTD = self.norm3(prompt_BTD + self.mlp_prompt(prompt_BTD))
        read = self.series_to_prompt_attention.attend_apart(series_BPD + at_PD, prompt_BTD + at_TD, prompt_BTD)
        return prompt_BTD, self.norm4(series_BPD + read)


class _StateDecoder(nn.Module):
    def __init__(self, config: PromptTSSConfig) -> None:
        super().__init__()
        self.positional_encoding = nn.Parameter(torch.zeros(1, config.positions, config.width))
        self.decoder_blocks = nn.ModuleList(PromptDecoderBlock(config) for _ in range(config.decoder_blocks))
        self.final_attention = Attention(config.width, config.heads, config.dropout)
        self.norm_final_attention = nn.LayerNorm(config.width)
        self.state_projection = nn.Linear(config.width, config.classes)

    def forward(self, prompt_BTD: Tensor, series_BPD: Tensor) -> Tensor:
        place_TD = self.positional_encoding[0]
        for number, block in enumerate(self.decoder_blocks):
            prompt_BTD, series_BPD = block(prompt_BTD, series_BPD, place_TD, first=number == 0)
        prompt_BTD = prompt_BTD + place_TD[: prompt_BTD.shape[1]]
        series_BPD = series_BPD + place_TD[: series_BPD.shape[1]]
        read = self.final_attention.attend_apart(prompt_BTD, series_BPD, series_BPD)
        logits: Tensor = self.state_projection(self.norm_final_attention(prompt_BTD + read))
        return logits


class PromptTSS(nn.Module):
    """Windows with prompts about their samples to logits of states."""

    def __init__(self, config: PromptTSSConfig) -> None:
        super().__init__()
        self.config = config
        self.prompt_encoder = _PromptEncoder(config)
        self.time_series_encoder = TimeSeriesEncoder(config)
        self.state_decoder = _StateDecoder(config)

    def encode(self, x_BTC: Tensor) -> Tensor:
        """Return tokens [B, P, D] of windows, each prolonged by its last sample for one stride of patches."""
        x_BTC = normalize(x_BTC)
        last_BSC = x_BTC[:, -1:].expand(-1, self.config.patch_stride, -1)
        return self.time_series_encoder.encode(torch.cat([x_BTC, last_BSC], dim=1))

    def forward(self, x_BTC: Tensor, label_BTL: Tensor, boundary_BT: Tensor) -> Tensor:
        """Return logits [B, T, K].

        ``label_BTL`` [B, T, 2K]: 1 at k where the state is declared to be k, at K + k where it is declared not to be; zeros:
        nothing is said. ``boundary_BT``: 1 a segment starts here, 0 none does, -1 nothing is said.
        """
        prompt_BTD = self.prompt_encoder(label_BTL, boundary_BT)
        logits: Tensor = self.state_decoder(prompt_BTD, self.encode(x_BTC))
        return logits
