"""Signed random projections: K hashes of L bits each that agree the more often, the smaller the angle between two vectors.

Bit l of hash k is 1 where W[k, l] . x > 0; two vectors at angle t agree on a bit with probability 1 - t/pi (Charikar 2002; SDIM,
arXiv 2205.10249, §4.2; ReLoop2, arXiv 2306.08808, §3.2.3). Invariant: a vector's buckets do not depend on what else is in the
batch. A float32 product rounds differently for other shapes, so every sign that rounding could have turned is decided again in
float64, one product at a time.
"""

# B vectors, D dim, K arrays, L bits per array, P dim padded to a power of two, G blocks of P projections, n doubtful signs

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch
from torch import Tensor

from connectors.errors import ConfigError

__all__ = ["MAX_BITS", "SignHash"]

MAX_BITS = 24
"""Powers of two up to here are exact in float32."""

_BLOCK = {"cpu": 256, "cuda": 1 << 16}  # vectors whose projections stay in the cache of one core
_DOUBTS = 1 << 16  # doubtful signs decided at a time


class SignHash:
    """The projections: weights only, fixed by a seed for a bank's whole life."""

    def __init__(
        self, dim: int, arrays: int, bits: int, seed: int = 0, device: torch.device | str = "cpu", *, structured: bool = False
    ) -> None:
        """Draw the projections, i.i.d. N(0, 1), on the CPU: every device gets the same.

        ``structured`` takes three rounds of random signs and a Hadamard transform in their place: D log D work in the place of
        D K L, with about the same distribution. Raise ``ConfigError`` for sizes that make no sense.
        """
        if dim < 1 or arrays < 1 or not 0 <= bits <= MAX_BITS:
            raise ConfigError(
                f"a hash of {arrays} arrays with {bits} bits over {dim} numbers: arrays and dim must be at least 1, "
                f"bits 0 to {MAX_BITS}"
            )
        self.dim, self.arrays, self.bits, self.seed = dim, arrays, bits, seed
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(seed)
        self._signs_3GP: Tensor | None = None
        self._set(torch.empty(arrays, bits, 0))
        if structured:
            padded = 1 << (dim - 1).bit_length()
            blocks = max(1, math.ceil(arrays * bits / padded))
            signs = torch.randint(0, 2, (3, blocks, padded), generator=generator, dtype=torch.int8)
            self._signs_3GP = (2.0 * signs - 1.0).to(self.device)
        else:
            self._set(torch.randn(arrays, bits, dim, generator=generator))

    @classmethod
    def from_weights(cls, weights_KLD: Tensor, device: torch.device | str = "cpu") -> Self:
        """Make a hash of given projections, float32 [K, L, D]."""
        arrays, bits, dim = weights_KLD.shape
        made = cls(dim, arrays, 0, device=device)
        made.bits, made.seed = bits, -1
        made._set(weights_KLD.float())
        return made

    def weights(self) -> Tensor:
        """Return the projections, float32 [K, L, D], on the CPU. Structured ones are those that the transform amounts to."""
        if self._signs_3GP is None:
            return self._weights_DM.T.reshape(self.arrays, self.bits, self.dim).cpu().clone()
        columns_DM = self._transform(torch.eye(self.dim, device=self.device))
        return columns_DM.T.reshape(self.arrays, self.bits, self.dim).cpu()

    def bytes(self) -> int:
        """Return the bytes of the projections."""
        tensors = [self._weights_DM, self._norm_M] if self._signs_3GP is None else [self._signs_3GP]
        return sum(t.numel() * t.element_size() for t in tensors)

    @torch.no_grad()
    def hash(self, x_BD: Tensor) -> Tensor:
        """Return the bucket of each vector in each array, int64 [B, K] in [0, 2**L). A zero vector has bucket 0 everywhere.

        Which bucket a vector with NaN or infinity gets is undefined.
        """
        if x_BD.ndim != 2 or x_BD.shape[1] != self.dim:
            raise ConfigError(f"vectors of shape {list(x_BD.shape)} do not fit a hash over {self.dim} numbers")
        x_BD = x_BD.to(self.device, torch.float32)
        step = _BLOCK[self.device.type]
        parts = [self._hash(x_BD[start : start + step]) for start in range(0, len(x_BD), step)]
        return torch.cat(parts) if parts else torch.zeros((0, self.arrays), dtype=torch.int64, device=self.device)

    def _set(self, weights_KLD: Tensor) -> None:
        self._weights_DM = weights_KLD.reshape(-1, weights_KLD.shape[2]).T.contiguous().to(self.device)
        self._norm_M = self._weights_DM.double().square().sum(0).sqrt().float()

    def _hash(self, x_bD: Tensor) -> Tensor:
        if self._signs_3GP is not None:
            bits_bM = self._transform(x_bD) > 0  # sums in one order whatever the batch
        else:
            projected_bM = x_bD @ self._weights_DM
            bits_bM = projected_bM > 0
            self._decide(bits_bM, projected_bM, x_bD)
        return _pack(bits_bM.view(len(x_bD), self.arrays, self.bits))

    def _decide(self, bits_bM: Tensor, projected_bM: Tensor, x_bD: Tensor) -> None:
        """Set the bits whose projection lies within the rounding error of a product, by a sum in float64."""
        unit = 2.0**-24 if torch.get_float32_matmul_precision() == "highest" else 2.0**-8  # TF32 or bfloat16 where allowed
        length_b = x_bD.double().square().sum(1).sqrt().float()
        # |error| <= D u |w|.|x| <= D u ||w|| ||x||; one bound for all projections is cheaper than one each.
        bound_b = length_b * (float(self._norm_M.max()) * (self.dim + 2) * unit if self.bits else 0.0)
        doubtful_bM = projected_bM.abs() <= bound_b[:, None]
        if projected_bM.is_cuda:
            row_n, column_n = doubtful_bM.nonzero(as_tuple=True)
        else:
            flat_n = torch.from_numpy(np.flatnonzero(doubtful_bM.numpy()))
            row_n, column_n = flat_n // projected_bM.shape[1], flat_n % projected_bM.shape[1]
        weights_MD = self._weights_DM.T
        for start in range(0, len(row_n), _DOUBTS):
            row, column = row_n[start : start + _DOUBTS], column_n[start : start + _DOUBTS]
            exact_n = (x_bD[row].double() * weights_MD[column].double()).sum(1)
            bits_bM[row, column] = exact_n > 0

    def _transform(self, x_bD: Tensor) -> Tensor:
        """Return the structured projections [b, K L]."""
        assert self._signs_3GP is not None
        _, blocks, padded = self._signs_3GP.shape
        y_bGP = torch.nn.functional.pad(x_bD, (0, padded - self.dim))[:, None].expand(-1, blocks, -1)
        for signs_GP in self._signs_3GP:
            y_bGP = _hadamard(y_bGP * signs_GP) / math.sqrt(padded)
        return y_bGP.reshape(len(x_bD), -1)[:, : self.arrays * self.bits] * math.sqrt(padded / self.dim)


def _hadamard(x_bGP: Tensor) -> Tensor:
    """Return the Walsh-Hadamard transform along the last dimension."""
    size, width = x_bGP.shape[-1], 1
    while width < size:
        pairs = x_bGP.reshape(*x_bGP.shape[:-1], size // (2 * width), 2, width)
        x_bGP = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], dim=-2)
        x_bGP = x_bGP.reshape(*x_bGP.shape[:-3], size)
        width *= 2
    return x_bGP


def _pack(bits_bKL: Tensor) -> Tensor:
    """Return sum over l of bit_l 2**l, int64 [b, K]."""
    b, arrays, bits = bits_bKL.shape
    if bits == 0:
        return torch.zeros((b, arrays), dtype=torch.int64, device=bits_bKL.device)
    if bits_bKL.is_cuda:
        # Whole numbers in int64, not a product with powers of two in float32: TF32 would cut those.
        powers_L = 1 << torch.arange(bits, device=bits_bKL.device)
        return (bits_bKL * powers_L).sum(2)
    packed = np.packbits(bits_bKL.numpy(), axis=-1, bitorder="little").astype(np.int64)  # [b, K, bytes]
    buckets = packed[..., 0]
    for byte in range(1, packed.shape[-1]):
        buckets = buckets | (packed[..., byte] << (8 * byte))
    return torch.from_numpy(np.ascontiguousarray(buckets))
