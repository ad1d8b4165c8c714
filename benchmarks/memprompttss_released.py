"""The released modules of Perseus (MemPromptTSS), written again from their description with PyTorch's own layers.

Literal where it costs time: one window at a time, the encoder again for every window, memory by concatenation, a new box kernel
at every call. Shares nothing with ``models.memprompttss``: golden tests and speed compare the product with it. Parameters have
the released names.
"""

# B subsequences, T samples, C channels, P patches, N tokens, D width, K states, R prompts

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Perseus", "run_released"]


class _Positions(nn.Module):
    pe: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        table = torch.zeros(5000, width)
        rate = torch.tensor([10000.0 ** (-i / width) for i in range(0, width, 2)])
        for place in range(5000):
            table[place, 0::2] = torch.sin(place * rate)
            table[place, 1::2] = torch.cos(place * rate)
        self.register_buffer("pe", table[None])


class _Input(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.position_embedding = _Positions(width)
        self.token_embedding = nn.Linear(inputs, width, bias=False)


class _Ffn(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Encoder(nn.Module):
    def __init__(self, sizes: dict[str, int], activation: str, axis: str, dropout: float) -> None:
        super().__init__()
        width, patch = sizes["width"], sizes["patch"]
        self.patch, self.step, self.axis = patch, sizes["patch_stride"], axis
        self.input_layer = _Input(sizes["channels"] * patch, width)
        layer = nn.TransformerEncoderLayer(width, sizes["heads"], 4 * width, dropout, activation, batch_first=axis == "time")
        self.encoder = nn.TransformerEncoder(layer, sizes["encoder_layers"], nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        mean = x_BTC.mean(1, keepdim=True)
        x_BTC = (x_BTC - mean) / torch.sqrt(((x_BTC - mean) ** 2).mean(1, keepdim=True) + 1e-5)
        count = (x_BTC.shape[1] - self.patch) // self.step + 1
        pieces = [x_BTC[:, j * self.step : j * self.step + self.patch].transpose(1, 2).flatten(1) for j in range(count)]
        tokens = self.input_layer.token_embedding(torch.stack(pieces, 1)) + self.input_layer.position_embedding.pe[:, :count]
        return self.encoder(tokens)


class _Prompts(nn.Module):
    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        width = sizes["width"]
        self.label_proj = nn.Linear(2 * sizes["classes"], width)
        self.boundary_embed = nn.Embedding(2, width)
        self.type_embed = nn.Embedding(2, width)
        self.aspect_embed = nn.Embedding(2, width)

    def forward(self, kind: Tensor, label: Tensor, boundary: Tensor, aspect: Tensor) -> Tensor:
        what = (kind == 0).float()[..., None]
        token = what * self.label_proj(label) + (1 - what) * self.boundary_embed(boundary)
        return token + self.type_embed(kind) + self.aspect_embed(aspect)


class _MemoryLayer(nn.Module):
    def __init__(self, sizes: dict[str, int], dropout: float) -> None:
        super().__init__()
        width = sizes["width"]
        self.ln_q, self.ln_kv, self.ln_ff = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, sizes["heads"], dropout, batch_first=True)
        self.ffn = _Ffn(width, dropout)

    def forward(self, q: Tensor, kv: Tensor) -> Tensor:
        keys = self.ln_kv(kv)
        q = q + self.attn(self.ln_q(q), keys, keys, need_weights=False)[0]
        return q + self.ffn(self.ln_ff(q))


class _Memory(nn.Module):
    def __init__(self, sizes: dict[str, int], dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_MemoryLayer(sizes, dropout) for _ in range(sizes["memory_layers"]))

    def forward(self, q: Tensor, kv: Tensor) -> Tensor:
        for layer in self.layers:
            q = layer(q, kv)
        return q


class _Block(nn.Module):
    def __init__(self, sizes: dict[str, int], dropout: float) -> None:
        super().__init__()
        width = sizes["width"]
        for name in ("ln_x_sa", "ln_x_ca", "ln_m_for_x", "ln_x_ff", "ln_m_sa", "ln_m_ca", "ln_x_for_m", "ln_m_ff"):
            setattr(self, name, nn.LayerNorm(width))
        for name in ("x_self", "x_from_m", "m_self", "m_from_x"):
            setattr(self, name, nn.MultiheadAttention(width, sizes["heads"], dropout, batch_first=True))
        self.ff_x, self.ff_m = _Ffn(width, dropout), _Ffn(width, dropout)

    def forward(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        x = x + _attend(self.x_self, self.ln_x_sa(x), self.ln_x_sa(x))
        x = x + _attend(self.x_from_m, self.ln_x_ca(x), self.ln_m_for_x(m))
        if m.shape[1]:
            m = m + _attend(self.m_self, self.ln_m_sa(m), self.ln_m_sa(m))
            m = m + _attend(self.m_from_x, self.ln_m_ca(m), self.ln_x_for_m(x))
        x = x + self.ff_x(self.ln_x_ff(x))
        if m.shape[1]:
            m = m + self.ff_m(self.ln_m_ff(m))
        return x, m


def _attend(attention: nn.MultiheadAttention, q: Tensor, kv: Tensor) -> Tensor:
    if kv.shape[1] == 0:
        return attention.out_proj.bias.expand_as(q)
    return attention(q, kv, kv, need_weights=False)[0]


class _Decoder(nn.Module):
    def __init__(self, sizes: dict[str, int], dropout: float) -> None:
        super().__init__()
        self.patch, self.step = sizes["patch"], sizes["patch_stride"]
        self.blocks = nn.ModuleList(_Block(sizes, dropout) for _ in range(sizes["decoder_blocks"]))
        self.ln_head = nn.LayerNorm(sizes["width"])
        self.head = nn.Linear(sizes["width"], sizes["classes"])

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        for block in self.blocks:
            x, m = block(x, m)
        return self.spread(self.head(self.ln_head(x)))

    def spread(self, patch_BPK: Tensor) -> Tensor:
        """Overlap-add by a transposed convolution with a box, divided by the cover counts; the box is made at every call."""
        states = patch_BPK.shape[2]
        box = torch.ones(states, 1, self.patch)
        total = F.conv_transpose1d(patch_BPK.transpose(1, 2), box, stride=self.step, groups=states)
        count = F.conv_transpose1d(torch.ones(1, 1, patch_BPK.shape[1]), torch.ones(1, 1, self.patch), stride=self.step)
        return (total / count).transpose(1, 2)


class Perseus(nn.Module):
    """All parts. ``sizes``: channels, classes, width, heads, layers of each part, patch and patch_stride."""

    def __init__(self, sizes: dict[str, int], *, activation: str = "relu", axis: str = "time", dropout: float = 0.1) -> None:
        super().__init__()
        self.prompt_encoder = _Prompts(sizes)
        self.ts_encoder = _Encoder(sizes, activation, axis, dropout)
        self.memory_encoder = _Memory(sizes, dropout)
        self.state_decoder = _Decoder(sizes, dropout)

    def remember(self, kind: Tensor, label: Tensor, boundary: Tensor, aspect: Tensor, context_RTC: Tensor) -> Tensor:
        """Return memory tokens [R, D] of prompts [R]."""
        token_RD = self.prompt_encoder(kind, label, boundary, aspect)
        return self.memory_encoder(token_RD[:, None], self.ts_encoder(context_RTC))[:, 0]


def run_released(model: Perseus, x_BLC: Tensor, m_BND: Tensor, window: int, stride: int) -> Tensor:
    """Return the logits [B, W, T, K] of all windows, one call of the model for each, as the released loop does."""
    windows = math.floor((x_BLC.shape[1] - window) / stride) + 1
    out = []
    for w in range(windows):
        tokens = model.ts_encoder(x_BLC[:, w * stride : w * stride + window])
        bank = torch.cat([m_BND[:, i : i + 1] for i in range(m_BND.shape[1])], dim=1) if m_BND.shape[1] else m_BND
        out.append(model.state_decoder(tokens, bank))
    return torch.stack(out, dim=1)
