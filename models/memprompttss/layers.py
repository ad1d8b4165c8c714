"""What both releases are built of: attention, feed-forward, patches of a window and the time-series encoder.

Parameters bear the names of the released checkpoints. Modules hold weights only.
"""

# B windows or banks, P patches or queries, N keys, T samples, C channels, D width, H heads

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.memprompttss.config import POSITIONS, Activation, EncoderAxis, Sizes

__all__ = ["Attention", "FeedForward", "PatchEmbedding", "TimeSeriesEncoder", "coverage", "normalize", "patches", "sinusoids"]

_EPSILON = 1e-5
"""Below the root of the variance of a window."""


def normalize(x_BTC: Tensor) -> Tensor:
    """Remove mean and scale of each channel of each window (RevIN without an affine map). A flat channel becomes zeros."""
    with torch.no_grad():
        mean_B1C = x_BTC.mean(1, keepdim=True)
        scale_B1C = (x_BTC.var(1, keepdim=True, unbiased=False) + _EPSILON).sqrt()
    return (x_BTC - mean_B1C) / scale_B1C


def patches(x_BTC: Tensor, length: int, stride: int) -> Tensor:
    """Cut windows into overlapping patches, channel by channel within a patch: [B, P, C * length]."""
    return x_BTC.unfold(1, length, stride).flatten(2)


def coverage(samples: int, count: int, length: int, stride: int) -> Tensor:
    """Return the matrix [T, P] that averages for each sample over the patches that cover it. Rows sum to 1."""
    at_T1, start_P = torch.arange(samples)[:, None], torch.arange(count) * stride
    covers_TP = ((at_T1 >= start_P) & (at_T1 < start_P + length)).float()
    return covers_TP / covers_TP.sum(1, keepdim=True)


def sinusoids(rows: int, width: int) -> Tensor:
    """Return the fixed table of positions: sines on even, cosines on odd dimensions, base 10000; [rows, D]."""
    angle = torch.arange(rows).float()[:, None] * torch.exp(torch.arange(0, width, 2).float() * -(math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


class Attention(nn.Module):
    """Multi-head attention with the parameters of ``torch.nn.MultiheadAttention``, in parts that can be computed once."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def keys_values(self, y_BND: Tensor) -> Tensor:
        """Project what is attended to; [B, N, 2D]."""
        width = y_BND.shape[2]
        return F.linear(y_BND, self.in_proj_weight[width:], self.in_proj_bias[width:])

    def attend(self, x_BPD: Tensor, kv_BN2D: Tensor, valid_BN: Tensor | None = None) -> Tensor:
        """Attend from ``x`` to projected keys and values; ``valid_BN`` False: not there. Nothing there: the output's bias."""
        width = x_BPD.shape[2]
        if kv_BN2D.shape[1] == 0:
            return self.out_proj.bias.expand(x_BPD.shape)
        q_BPD = F.linear(x_BPD, self.in_proj_weight[:width], self.in_proj_bias[:width])
        k_BND, v_BND = kv_BN2D[:, :, :width], kv_BN2D[:, :, width:]
        return self._mix(q_BPD, k_BND, v_BND, valid_BN)

    def attend_apart(self, q_BPD: Tensor, k_BND: Tensor, v_BND: Tensor) -> Tensor:
        """Attend with keys and values of different origin, none of them projected yet."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((q_BPD, k_BND, v_BND), weights, biases, strict=True))
        return self._mix(q, k, v, None)

    def to_itself(self, x_BPD: Tensor, valid_BP: Tensor | None = None) -> Tensor:
        """Attend within each sequence."""
        qkv = F.linear(x_BPD, self.in_proj_weight, self.in_proj_bias)
        q_BPD, k_BPD, v_BPD = qkv.chunk(3, dim=2)
        return self._mix(q_BPD, k_BPD, v_BPD, valid_BP)

    def alone(self, x_BPD: Tensor) -> Tensor:
        """Attend from each element to itself only: what attention over a batch of one amounts to."""
        width = x_BPD.shape[2]
        value: Tensor = self.out_proj(F.linear(x_BPD, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :]))
        return value

    def _mix(self, q_BPD: Tensor, k_BND: Tensor, v_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
        q, k, v = (part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (q_BPD, k_BND, v_BND))
        mask = None
        if valid_BN is not None:
            none_B1 = ~valid_BN.any(1, keepdim=True)
            mask = (valid_BN | none_B1)[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        out_BPD = mixed.transpose(1, 2).flatten(2)
        if valid_BN is not None:
            out_BPD = out_BPD.masked_fill(none_B1[:, :, None], 0.0)
        attended: Tensor = self.out_proj(out_BPD)
        return attended


class FeedForward(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        out: Tensor = self.net(x)
        return out


class _PositionTable(nn.Module):
    """A fixed table, not part of saved weights: it follows from its size."""

    pe: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoids(POSITIONS, width)[None], persistent=False)


class PatchEmbedding(nn.Module):
    """Patches to tokens, with their places."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.token_embedding = nn.Linear(inputs, width, bias=False)
        self.position_embedding = _PositionTable(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, patches_BPI: Tensor) -> Tensor:
        """Return [B, P, D]."""
        tokens: Tensor = self.dropout(self.token_embedding(patches_BPI) + self.position_embedding.pe[:, : patches_BPI.shape[1]])
        return tokens


class _EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self._activation = F.relu if activation == "relu" else F.gelu

    def forward(self, x_BPD: Tensor, axis: EncoderAxis, alone: bool) -> Tensor:
        if axis == "time":
            mixed = self.self_attn.to_itself(x_BPD)
        elif alone:
            mixed = self.self_attn.alone(x_BPD)
        else:
            mixed = self.self_attn.to_itself(x_BPD.transpose(0, 1)).transpose(0, 1)
        x_BPD = self.norm1(x_BPD + self.dropout(mixed))
        hidden = self.dropout(self._activation(self.linear1(x_BPD)))
        out: Tensor = self.norm2(x_BPD + self.dropout(self.linear2(hidden)))
        return out


class _Layers(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_EncoderLayer(width, heads, activation, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)


class TimeSeriesEncoder(nn.Module):
    """Windows (or contexts of prompts) to tokens of their patches: post-norm Transformer layers (spec section 3.1)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch, self.patch_stride, self.axis = sizes.patch, sizes.patch_stride, sizes.encoder_axis
        self.input_layer = PatchEmbedding(sizes.channels * sizes.patch, sizes.width, sizes.dropout)
        self.encoder = _Layers(sizes.width, sizes.heads, sizes.encoder_layers, sizes.activation, sizes.dropout)

    def forward(self, x_BTC: Tensor, *, alone: bool = False) -> Tensor:
        """Return tokens [B, P, D]. ``alone``: with the axis "batch", as if every window were the only one of its batch."""
        return self.encode(normalize(x_BTC), alone=alone)

    def encode(self, x_BTC: Tensor, *, alone: bool = False) -> Tensor:
        """Return tokens of windows that are normalized already."""
        x_BPD = self.input_layer(patches(x_BTC, self.patch, self.patch_stride))
        for layer in self.encoder.layers:
            x_BPD = layer(x_BPD, self.axis, alone)
        tokens: Tensor = self.encoder.norm(x_BPD)
        return tokens
