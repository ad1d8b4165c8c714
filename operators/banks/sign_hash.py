"""Signed random projections: K hashes of L bits each that agree the more often, the smaller the angle between two vectors.

Bit l of hash k is 1 where W[k, l] . x > 0; two vectors at angle t agree on a bit with probability 1 - t/pi (Charikar 2002;
ReLoop2, arXiv 2306.08808, §3.2.3). Invariant: a vector's buckets do not depend on what else is in the batch. A product in
float32 rounds differently for other shapes, so every sign that rounding could have turned is decided again in float64.
"""

# B vectors, b vectors of a block, D dim, K arrays, L bits, M = K L, P dim padded to a power of two, G blocks of P, n signs

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks.slot_bank import ReadBuffer

__all__ = ["MAX_BITS", "SignHash"]

MAX_BITS = 24
"""Powers of two up to here are exact in float32."""

_BLOCK = {"cpu": 256, "cuda": 1 << 16}  # vectors whose projections stay in the cache of one core
_DOUBTS = 1 << 14  # doubtful signs decided at a time
_FEW = 1 << 26  # products of a block up to which a device decides all signs again


class SignHash:
    """The projections: weights only, fixed by a seed for a bank's whole life."""

    def __init__(
        self, dim: int, arrays: int, bits: int, seed: int = 0, device: torch.device | str = "cpu", *, structured: bool = False
    ) -> None:
        """Draw the projections, i.i.d. N(0, 1), on the CPU: every device gets the same.

        ``structured`` takes three rounds of random signs and Hadamard transforms in their place: D log D work for D
        projections, not D D, with about the same distribution. Raise ``ConfigError`` for sizes that make no sense.
        """
        if dim < 1 or arrays < 1 or not 0 <= bits <= MAX_BITS:
            raise ConfigError(
                f"a hash of {arrays} arrays of {bits} bits over {dim} numbers: arrays and numbers must be at least 1, "
                f"bits 0 to {MAX_BITS}"
            )
        self.dim, self.arrays, self.bits = dim, arrays, bits
        self.device = torch.device(device)
        self._powers_L = (2.0 ** torch.arange(bits)).to(self.device)
        self._signs_3GP: Tensor | None = None
        self._weights_MD = torch.empty(0)
        self._scratch = ReadBuffer() if self.device.type == "cpu" else None
        generator = torch.Generator().manual_seed(seed)
        if structured:
            padded = 1 << (dim - 1).bit_length()
            blocks = max(1, math.ceil(arrays * bits / padded))
            signs = torch.randint(0, 2, (3, blocks, padded), generator=generator)
            self._signs_3GP = (2.0 * signs - 1.0).to(self.device)
        else:
            self._set(torch.randn(arrays, bits, dim, generator=generator))

    @classmethod
    def from_weights(cls, weights_KLD: Tensor, device: torch.device | str = "cpu") -> Self:
        """Make a hash of given projections, float32 [K, L, D]."""
        arrays, bits, dim = weights_KLD.shape
        made = cls(dim, arrays, bits, device=device)
        made._set(weights_KLD.float())
        return made

    def weights(self) -> Tensor:
        """Return the projections, float32 [K, L, D], on the CPU. Structured ones are those that the transform amounts to."""
        rows_MD = self._weights_MD if self._signs_3GP is None else self._transform(torch.eye(self.dim, device=self.device)).T
        return rows_MD.reshape(self.arrays, self.bits, self.dim).cpu()

    def bytes(self) -> int:
        """Return the bytes of the projections."""
        held = self._weights_MD if self._signs_3GP is None else self._signs_3GP
        return held.numel() * held.element_size()

    @torch.no_grad()
    def hash(self, x_BD: Tensor) -> Tensor:
        """Return the bucket of each vector in each array, int64 [B, K], below 2**L. A zero vector has bucket 0 everywhere.

        Which buckets a vector with NaN or infinity gets is undefined.
        """
        if x_BD.ndim != 2 or x_BD.shape[1] != self.dim:
            raise ConfigError(f"vectors of shape {list(x_BD.shape)} do not fit a hash over {self.dim} numbers")
        x_BD = x_BD.to(self.device, torch.float32)
        step = _BLOCK[self.device.type]
        parts = [self._hash(x_BD[start : start + step]) for start in range(0, len(x_BD), step)]
        return torch.cat(parts) if parts else torch.zeros((0, self.arrays), dtype=torch.int64, device=self.device)

    def _set(self, weights_KLD: Tensor) -> None:
        self._weights_MD = weights_KLD.reshape(self.arrays * self.bits, self.dim).contiguous().to(self.device)
        self._longest = float(self._weights_MD.double().square().sum(1).max().sqrt()) if self.bits else 0.0

    def _hash(self, x_bD: Tensor) -> Tensor:
        if self._signs_3GP is not None:
            bits_bM = (self._transform(x_bD) > 0).float()  # sums in one order, whatever the batch
        else:
            shape = (len(x_bD), len(self._weights_MD))
            projected_bM = torch.mm(x_bD, self._weights_MD.T, out=self._take("projected", shape))
            bits_bM = torch.gt(projected_bM, 0, out=self._take("bits", shape))
            self._decide(bits_bM, projected_bM, x_bD)
        if not self.bits:
            return torch.zeros((len(x_bD), self.arrays), dtype=torch.int64, device=self.device)
        # A product with powers of two: sums below 2**24 are exact in float32.
        return (bits_bM.view(-1, self.bits) @ self._powers_L).long().view(len(x_bD), self.arrays)

    def _decide(self, bits_bM: Tensor, projected_bM: Tensor, x_bD: Tensor) -> None:
        """Set the bits whose projection lies within the rounding error of a product, by a sum in float64."""
        if not self.bits:
            return
        unit = 2.0**-24 if torch.get_float32_matmul_precision() == "highest" else 2.0**-8  # where TF32 or bfloat16 is allowed
        # |error| <= (D + 2) u |w|.|x| <= (D + 2) u ||w|| ||x||
        bound_b = x_bD.double().square().sum(1).sqrt().float() * (self._longest * (self.dim + 2) * unit)
        size_bM = projected_bM.abs_()
        if self.device.type != "cpu" and x_bD.numel() * len(self._weights_MD) <= _FEW:
            # All of them again costs less than to wait for the device, which alone knows how many are in doubt.
            exact_bM = (x_bD.double()[:, None] * self._weights_MD.double()).sum(2)
            bits_bM.copy_(torch.where(size_bM <= bound_b[:, None], (exact_bM > 0).float(), bits_bM))
            return
        suspect_n = (size_bM.amin(1) <= bound_b).nonzero()[:, 0]
        row_n, column_n = (size_bM[suspect_n] <= bound_b[suspect_n, None]).nonzero(as_tuple=True)
        row_n = suspect_n[row_n]
        for start in range(0, len(row_n), _DOUBTS):
            row, column = row_n[start : start + _DOUBTS], column_n[start : start + _DOUBTS]
            exact_n = (x_bD[row].double() * self._weights_MD[column].double()).sum(1)
            bits_bM[row, column] = (exact_n > 0).float()

    def _take(self, name: str, shape: tuple[int, int]) -> Tensor:
        """Return memory for a block: on the CPU the same every time, fresh pages would cost as much as the product."""
        if self._scratch is None:
            return torch.empty(shape, device=self.device)
        return self._scratch.take(name, shape, torch.float32)

    def _transform(self, x_bD: Tensor) -> Tensor:
        """Return the structured projections [b, M]."""
        assert self._signs_3GP is not None
        _, blocks, padded = self._signs_3GP.shape
        y_bGP = torch.nn.functional.pad(x_bD, (0, padded - self.dim))[:, None].expand(-1, blocks, -1)
        for signs_GP in self._signs_3GP:
            y_bGP = _hadamard(y_bGP * signs_GP)
        return y_bGP.reshape(len(x_bD), -1)[:, : self.arrays * self.bits] / padded


def _hadamard(x_bGP: Tensor) -> Tensor:
    """Return the Walsh-Hadamard transform along the last dimension."""
    shape, width = x_bGP.shape, 1
    while width < shape[-1]:
        pairs = x_bGP.reshape(*shape[:-1], -1, 2, width)
        left, right = pairs[..., 0, :], pairs[..., 1, :]
        x_bGP = torch.stack([left + right, left - right], dim=-2).reshape(shape)
        width *= 2
    return x_bGP
