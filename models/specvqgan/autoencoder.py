"""The codebook autoencoder: mel spectrogram to a grid of tokens and back (spec 5 and 7A).

Normalization and attention look at everything they are given: what is cut before the encoder or the decoder is another
signal. Parameter names are the official ones.
"""

# B batch, C channels, H rows, W columns, K codes, D code width, N places

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.specvqgan.config import COLUMN_FRAMES, AutoencoderConfig

__all__ = ["Autoencoder", "Quantized", "nearest_codes", "perplexity"]

_GROUPS = 32
_EPS = 1e-6


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=_EPS)


class ResidualBlock(nn.Module):
    """Twice norm, swish and a 3x3 convolution, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        y_BCHW = self.conv2(F.silu(self.norm2(y_BCHW)))
        shortcut_BCHW: Tensor = x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW)
        out_BCHW: Tensor = shortcut_BCHW + y_BCHW
        return out_BCHW


class Attention(nn.Module):
    """One head over all places of the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.norm(x_BCHW)
        q_BNC, k_BNC, v_BNC = (part(y_BCHW).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        read_BNC = F.scaled_dot_product_attention(q_BNC, k_BNC, v_BNC)
        out_BCHW: Tensor = x_BCHW + self.proj_out(read_BNC.transpose(1, 2).reshape(x_BCHW.shape))
        return out_BCHW


class Halve(nn.Module):
    """Halves both axes; odd ones lose their last row or column, as zeros stand only right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))
        return out_BCHW


class Double(nn.Module):
    """Doubles both axes by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return out_BCHW


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the level has it."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.downsample: Halve | None = None
        self.upsample: Double | None = None
        self.block = nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(outputs) for _ in range(blocks if attention else 0))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x_BCHW = block(x_BCHW)
            if len(self.attn):
                x_BCHW = self.attn[i](x_BCHW)
        return x_BCHW


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1 = ResidualBlock(channels, channels), Attention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return out_BCHW


class Encoder(nn.Module):
    """``[B, 1, 80, T] -> [B, Z, 5, T // 16]``."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(1, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip((config.channels, *widths), widths, strict=False)):
            level = Level(inputs, outputs, config.blocks, i in config.attention_levels)
            if i < len(widths) - 1:
                level.downsample = Halve(outputs)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x_B1HW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(x_B1HW)
        for level in self.down:
            x_BCHW = level(x_BCHW)
            assert isinstance(level, Level)
            if level.downsample is not None:
                x_BCHW = level.downsample(x_BCHW)
        out_BCHW: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x_BCHW))))
        return out_BCHW


class Decoder(nn.Module):
    """``[B, Z, 5, W] -> [B, 1, 80, 16 W]``, not limited to [-1, 1]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for i, outputs in enumerate(widths):
            inputs = widths[min(i + 1, len(widths) - 1)]
            level = Level(inputs, outputs, config.blocks + 1, i in config.attention_levels)
            if i > 0:
                level.upsample = Double(outputs)
            self.up.append(level)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_in(z_BCHW))
        for level in reversed(self.up):
            x_BCHW = level(x_BCHW)
            assert isinstance(level, Level)
            if level.upsample is not None:
                x_BCHW = level.upsample(x_BCHW)
        out_B1HW: Tensor = self.conv_out(F.silu(self.norm_out(x_BCHW)))
        return out_B1HW


def nearest_codes(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """Return for each row the index of the nearest code by squared distance, the lowest of several; in float32 or wider."""
    wide = torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
    z_ND, codes_KD = z_ND.to(wide), codes_KD.to(wide)
    squares_NK = z_ND.square().sum(1, keepdim=True) + codes_KD.square().sum(1) - 2 * z_ND @ codes_KD.T
    is_best_NK = squares_NK == squares_NK.amin(1, keepdim=True)
    places_K = torch.arange(len(codes_KD), device=z_ND.device)
    return torch.where(is_best_NK, places_K, len(codes_KD)).amin(1).clamp_max(len(codes_KD) - 1)


def perplexity(tokens: Tensor, codes: int) -> Tensor:
    """Return how many codes are in use, weighted: exp of the entropy of their shares."""
    shares_K = torch.bincount(tokens.flatten(), minlength=codes) / tokens.numel()
    return (-(shares_K * (shares_K + 1e-10).log()).sum()).exp()


class Quantized(NamedTuple):
    """What the codebook makes of a map."""

    z_BDHW: Tensor
    """The codes; gradients pass to the encoder unchanged."""
    tokens_BHW: Tensor
    """Their indices, int64."""
    loss: Tensor
    """mean |sg(z_q) - z|^2 and mean |z_q - sg(z)|^2, weighted by ``beta`` (see :meth:`Autoencoder.quantize_map`)."""


class Codebook(nn.Module):
    """The rows of the codebook."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)


class Autoencoder(nn.Module):
    """Mel spectrogram in [-1, 1] to tokens and back."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Codebook(config.codes, config.code_width)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_width, 1)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.z_channels, 1)

    @property
    def codes_KD(self) -> Tensor:
        """The codebook."""
        return self.quantize.embedding.weight

    def encode_map(self, x_B1HW: Tensor) -> Tensor:
        """Return what the quantizer gets, [B, D, 5, T // 16]. Fewer than 16 frames are filled up with silence (-1)."""
        missing = COLUMN_FRAMES - x_B1HW.shape[-1]
        if missing > 0:
            x_B1HW = F.pad(x_B1HW, (0, missing), value=-1.0)
        z_BDHW: Tensor = self.quant_conv(self.encoder(x_B1HW))
        return z_BDHW

    def quantize_map(self, z_BDHW: Tensor, *, beta: float = 0.25, legacy_beta: bool = True) -> Quantized:
        """Replace every place by its nearest code.

        ``legacy_beta``: as in the official code, ``beta`` weights the codebook's term; else the commitment's.
        """
        z_BHWD = z_BDHW.permute(0, 2, 3, 1)
        tokens_BHW = nearest_codes(z_BHWD.reshape(-1, z_BHWD.shape[-1]), self.codes_KD).view(z_BHWD.shape[:-1])
        code_BHWD = F.embedding(tokens_BHW, self.codes_KD)
        commitment, codebook = (code_BHWD.detach() - z_BHWD).square().mean(), (code_BHWD - z_BHWD.detach()).square().mean()
        loss = commitment + beta * codebook if legacy_beta else codebook + beta * commitment
        through_BHWD = z_BHWD + (code_BHWD - z_BHWD).detach()
        return Quantized(through_BHWD.permute(0, 3, 1, 2), tokens_BHW, loss)

    def encode(self, x_B1HW: Tensor) -> Tensor:
        """Return the tokens [B, 5, T // 16] of a spectrogram [B, 1, 80, T]."""
        z_BDHW = self.encode_map(x_B1HW)
        flat_ND = z_BDHW.permute(0, 2, 3, 1).reshape(-1, z_BDHW.shape[1])
        return nearest_codes(flat_ND, self.codes_KD).view(z_BDHW.shape[0], *z_BDHW.shape[2:])

    def decode_map(self, z_BDHW: Tensor) -> Tensor:
        """Return the spectrogram [B, 1, 80, 16 W] of codes [B, D, 5, W]."""
        x_B1HW: Tensor = self.decoder(self.post_quant_conv(z_BDHW))
        return x_B1HW

    def decode(self, tokens_BHW: Tensor) -> Tensor:
        """Return the spectrogram [B, 1, 80, 16 W] of tokens [B, 5, W]. Raises ``ValueError`` for a token without a code."""
        low, high = tokens_BHW.aminmax()
        if low < 0 or high >= self.config.codes:
            raise ValueError(f"tokens are {int(low)} to {int(high)}; the codebook has 0 to {self.config.codes - 1}")
        return self.decode_map(F.embedding(tokens_BHW, self.codes_KD).permute(0, 3, 1, 2))

    def forward(self, x_B1HW: Tensor) -> tuple[Tensor, Quantized]:
        """Return the reconstruction and what the codebook made, for training."""
        quantized = self.quantize_map(self.encode_map(x_B1HW))
        return self.decode_map(quantized.z_BDHW), quantized
