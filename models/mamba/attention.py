"""Multi-head attention of queries over an unordered set of remembered rows (GEO, MAMBA §3.3; one module for both levels).

Knows nothing about banks or streams: keys come in as raw rows (:meth:`Attention.forward`) or already projected
(:meth:`Attention.attend`), so a bank may store projected rows and project each row once. The result does not depend on the
order of the keys.
"""

# B batch, N queries, M keys, C channels, H heads, D channels per head

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention"]


class Attention(nn.Module):
    """The attention term ``A(X, K)`` of GEO, without the residual: ``concat_h(softmax(Q_h K_hᵀ / √D) V_h) Wo + bo``.

    Head h owns channels ``[h·D, (h+1)·D)``. GEO itself is ``x + attention(x, keys)``.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)

    def project(self, rows_C: Tensor) -> tuple[Tensor, Tensor]:
        """Return the key and value projections of rows ``[..., C]``, each ``[..., C]``."""
        return self.key(rows_C), self.value(rows_C)

    def attend(self, q_BNC: Tensor, k_BMC: Tensor, v_BMC: Tensor, valid_BM: Tensor | None = None) -> Tensor:
        """Return ``out_BNC`` for projected queries, keys and values.

        ``valid_BM`` (bool) names the keys that count; values behind invalid ones are ignored but must be finite. A batch
        entry without any valid key gives zeros, so that GEO leaves its queries as they are. Keys and values may be stored
        in another precision than the queries, and may come split by head, ``[B, H, M, D]`` (contiguous is fastest on CPU).
        """
        B, N, C = q_BNC.shape
        M = k_BMC.shape[-2]
        if M == 0:
            return torch.zeros_like(q_BNC)
        mask_B11M = None
        if valid_BM is not None:
            any_B11 = valid_BM.any(dim=1)[:, None, None]
            # A softmax over nothing is NaN in some kernels: attend to everything there and drop the result below.
            mask_B11M = (valid_BM[:, None] | ~any_B11)[:, None]
        out_BHND = F.scaled_dot_product_attention(
            self._split(q_BNC), self._split(k_BMC.to(q_BNC.dtype)), self._split(v_BMC.to(q_BNC.dtype)), attn_mask=mask_B11M
        )
        out_BNC: Tensor = self.output(out_BHND.transpose(1, 2).reshape(B, N, C))
        return out_BNC if valid_BM is None else out_BNC.masked_fill(~any_B11, 0.0)

    def forward(self, x_BNC: Tensor, keys_BMC: Tensor, valid_BM: Tensor | None = None) -> Tensor:
        """Return ``A(x, keys)`` for raw rows: ``attend(query(x), *project(keys))``."""
        return self.attend(self.query(x_BNC), *self.project(keys_BMC), valid_BM)

    def _split(self, rows_BNC: Tensor) -> Tensor:
        if rows_BNC.dim() == 4:
            return rows_BNC
        B, N, C = rows_BNC.shape
        return rows_BNC.reshape(B, N, self.heads, C // self.heads).transpose(1, 2)
