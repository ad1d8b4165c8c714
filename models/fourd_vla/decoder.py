"""The language decoder over embeddings: causal, rotary, grouped queries; Phi-3's parameter names. No generation, no cache."""

# B sequences, n tokens, D width, G groups of keys and values, H heads, d width of a head

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fourd_vla.config import DecoderConfig

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Embeddings [B, n, D] to hidden states. Padding may stand at the end only, where causality hides it."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)

    def forward(self, x_BnD: Tensor) -> Tensor:
        """Return the hidden states after the last norm, [B, n, D]."""
        turn = _rotation(self.config, x_BnD.shape[1], x_BnD.device)
        for layer in self.layers:
            x_BnD = layer(x_BnD, turn)
        states_BnD: Tensor = self.norm(x_BnD)
        return states_BnD


class _Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.groups, self.width = config.heads, config.kv_heads, config.hidden // config.heads
        sizes = (self.heads + 2 * self.groups) * self.width
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(config.hidden, eps=config.norm_eps) for _ in range(2))
        self.self_attn = nn.ModuleDict(
            {
                "qkv_proj": nn.Linear(config.hidden, sizes, bias=config.qkv_bias),
                "o_proj": nn.Linear(config.hidden, config.hidden, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_up_proj": nn.Linear(config.hidden, 2 * config.mlp, bias=False),
                "down_proj": nn.Linear(config.mlp, config.hidden, bias=False),
            }
        )

    def forward(self, x_BnD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        parts_BnHd = self.self_attn["qkv_proj"](self.input_layernorm(x_BnD)).unflatten(-1, (-1, self.width))
        query, key, value = parts_BnHd.transpose(1, 2).split([self.heads, self.groups, self.groups], dim=1)
        seen = F.scaled_dot_product_attention(
            _rotate(query, *turn), _rotate(key, *turn), value, is_causal=True, enable_gqa=self.groups != self.heads
        )
        x_BnD = x_BnD + self.self_attn["o_proj"](seen.transpose(1, 2).flatten(2))
        gate, up = self.mlp["gate_up_proj"](self.post_attention_layernorm(x_BnD)).chunk(2, dim=-1)
        out_BnD: Tensor = x_BnD + self.mlp["down_proj"](F.silu(gate) * up)
        return out_BnD


def _rotation(config: DecoderConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = config.hidden // config.heads
    rate_d = config.rope_theta ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angle_nd = torch.arange(length, device=device, dtype=torch.float32)[:, None] * rate_d
    angle_nd = torch.cat([angle_nd, angle_nd], dim=1)
    return angle_nd.cos(), angle_nd.sin()


def _rotate(x_BHnd: Tensor, cos_nd: Tensor, sin_nd: Tensor) -> Tensor:
    first, second = x_BHnd.float().chunk(2, dim=-1)
    turned = x_BHnd.float() * cos_nd + torch.cat([-second, first], dim=-1) * sin_nd
    return turned.to(x_BHnd.dtype)
