"""The transformer over [visual features, tokens], with a preallocated cache of keys and values (spec 6 and 7D).

The network holds weights only; a :class:`KVCache` belongs to whoever runs it. Each slot of the cache is at its own position,
so streams join and leave a batch freely. Parameter names are the official ones.
"""

# B batch, S slots, L layers, N new positions, P positions, H heads, D head width, C width, F features, E feature width, K codes

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.specvqgan.config import TransformerConfig
from models.specvqgan.packing import PackedLinear, can_pack, pack_linears
from models.uploads import upload

__all__ = ["Block", "KVCache", "SoundTransformer"]


@dataclass(slots=True)
class KVCache:
    """Keys and values of the positions read so far, allocated once."""

    keys: list[Tensor]
    """Per layer [S, H, P, D]."""
    values: list[Tensor]

    @classmethod
    def empty(
        cls, config: TransformerConfig, slots: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> KVCache:
        """Allocate for ``slots`` streams. Positions that were never written are never read."""
        shape = (slots, config.heads, config.positions, config.width // config.heads)
        return cls(*([torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)] for _ in range(2)))

    def bytes(self) -> int:
        """Return the bytes of all slots."""
        return sum(held_SHPD.numel() * held_SHPD.element_size() for held_SHPD in (*self.keys, *self.values))

    def clear(self, slot: int) -> None:
        """Forget what is no number: masked positions count as nothing only where numbers stand."""
        for held_SHPD in (*self.keys, *self.values):
            held_SHPD[slot].zero_()

    def extend(self, layer: int, new: _Places, keys_BHND: Tensor, values_BHND: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new positions of a layer and return its keys and values [B, H, P, D] up to the furthest one.

        Those of slots that stand side by side, in order, are a view: no copy of all that was read so far.
        """
        found = []
        for held_SHPD, new_BHND in ((self.keys[layer], keys_BHND), (self.values[layer], values_BHND)):
            if new.level:
                held_SHPD[new.chosen, :, new.to - 1] = new_BHND[:, :, 0].to(held_SHPD.dtype)
            else:
                held_SHPD[new.slots_B1, :, new.at_BN] = new_BHND.transpose(1, 2).to(held_SHPD.dtype)
            found.append(held_SHPD[new.chosen, :, : new.to].to(new_BHND.dtype))
        return found[0], found[1]


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Where new positions of some slots stand, as the host knows it, so that it need not ask the device."""

    slots_B1: Tensor
    at_BN: Tensor
    chosen: slice | Tensor
    """The slots; a slice where they stand side by side."""
    to: int
    """Behind the furthest position."""
    level: bool
    """One new position each, the same for all slots: nothing that is held is hidden from any."""

    @classmethod
    def of(cls, slots_B: Tensor, at_BN: Tensor, device: torch.device) -> _Places:
        """Upload slots and positions that lie on the host."""
        first, count = int(slots_B[0]), len(slots_B)
        there_B = upload(slots_B, device)
        beside = torch.equal(slots_B, torch.arange(first, first + count))
        chosen = slice(first, first + count) if beside else there_B
        to, level = int(at_BN.max()) + 1, at_BN.shape[1] == 1 and bool((at_BN == at_BN[0]).all())
        return cls(there_B[:, None], upload(at_BN, device), chosen, to, level)


class CausalAttention(nn.Module):
    """Attention with a separate linear layer each for query, key, value and result."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.key, self.query, self.value, self.proj = (nn.Linear(config.width, config.width) for _ in range(4))
        self.packed: PackedLinear | None = None

    def pack(self) -> None:
        """Compute query, key and value by one layer from now on."""
        parts = [self.query, self.key, self.value]
        if all(map(can_pack, parts)):
            self.packed = PackedLinear(*parts)
            del self.query, self.key, self.value

    def split(self, x_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, [B, H, N, D] each."""
        if self.packed is not None:
            parts = self.packed(x_BNC).chunk(3, dim=2)
        else:
            parts = (self.query(x_BNC), self.key(x_BNC), self.value(x_BNC))
        q, k, v = (part.view(*x_BNC.shape[:2], self.heads, -1).transpose(1, 2) for part in parts)
        return q, k, v

    def join(self, read_BHND: Tensor) -> Tensor:
        """Return what the heads read as [B, N, C]."""
        out_BNC: Tensor = self.proj(read_BHND.transpose(1, 2).flatten(2))
        return out_BNC


class Block(nn.Module):
    """Pre-norm attention and a feed-forward network of four times the width."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attn = CausalAttention(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.GELU(), nn.Linear(4 * config.width, config.width)
        )


class SoundTransformer(nn.Module):
    """Predicts the next token from the features of the window and the tokens before."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.codes, config.width)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.positions, config.width))
        self.embedder = nn.Conv1d(config.feature_width, config.width, 1)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.codes, bias=False)
        self.apply(self._initialize)

    @staticmethod
    def _initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def pack(self) -> None:
        """Lay out the weights for steps of one token on a CPU, in place: for inference only, there is no way back."""
        for block in self._blocks():
            block.attn.pack()
        pack_linears(self)

    def embed(self, feats_BEF: Tensor | None, tokens_BN: Tensor | None) -> Tensor:
        """Return the rows [B, F + N, C] of features, of tokens, or of both, without positions."""
        parts = []
        if feats_BEF is not None:
            wanted = (self.config.feature_width, self.config.features)
            if feats_BEF.shape[1:] != wanted:
                raise ValueError(f"features are {list(feats_BEF.shape[1:])}; this network takes {list(wanted)} per window")
            parts.append(self.embedder(feats_BEF).transpose(1, 2))
        if tokens_BN is not None:
            parts.append(self.tok_emb(tokens_BN))
        return torch.cat(parts, dim=1)

    def forward(self, feats_BEF: Tensor, tokens_BN: Tensor) -> Tensor:
        """Return the logits [B, F + N, K] of every position, without a cache: for training. At most a window of tokens."""
        x_BPC = self.embed(feats_BEF, tokens_BN)
        self._require_room(x_BPC.shape[1])
        x_BPC = x_BPC + self.pos_emb[:, : x_BPC.shape[1]]
        for block in self._blocks():
            q, k, v = block.attn.split(block.ln1(x_BPC))
            x_BPC = x_BPC + block.attn.join(F.scaled_dot_product_attention(q, k, v, is_causal=True))
            x_BPC = x_BPC + block.mlp(block.ln2(x_BPC))
        logits_BPK: Tensor = self.head(self.ln_f(x_BPC))
        return logits_BPK

    def read(self, x_BNC: Tensor, cache: KVCache, slots_B: Tensor, start_B: Tensor, last_B: Tensor | None = None) -> Tensor:
        """Read new positions of some slots, write them to the cache, and return the logits [B, K] of the last one.

        ``x_BNC`` are rows of :meth:`embed`; row n of batch entry b stands at position ``start_B[b] + n`` of slot
        ``slots_B[b]``. ``last_B``: the last row that counts where entries are of different lengths (those behind it are
        written, but overwritten before they are ever read). Slots must differ. All these numbers lie on the host.
        """
        count = x_BNC.shape[1]
        at_BN = start_B[:, None] + torch.arange(count)
        self._require_room(int(start_B.max()) + count if last_B is None else int((start_B + last_B).max()) + 1)
        at_BN = at_BN.clamp_max(self.config.positions - 1) if last_B is not None else at_BN
        new = _Places.of(slots_B, at_BN, x_BNC.device)
        x_BNC = x_BNC + self.pos_emb[0, new.at_BN]
        seen_B1NP = None if new.level else (torch.arange(new.to, device=x_BNC.device) <= new.at_BN[..., None])[:, None]
        for layer, block in enumerate(self._blocks()):
            q, k, v = block.attn.split(block.ln1(x_BNC))
            keys_BHPD, values_BHPD = cache.extend(layer, new, k, v)
            read_BHND = F.scaled_dot_product_attention(q, keys_BHPD, values_BHPD, attn_mask=seen_B1NP)
            x_BNC = x_BNC + block.attn.join(read_BHND)
            x_BNC = x_BNC + block.mlp(block.ln2(x_BNC))
        if last_B is None:
            last_BC = x_BNC[:, -1]
        else:
            last_BC = x_BNC[torch.arange(len(x_BNC), device=x_BNC.device), upload(last_B, x_BNC.device)]
        logits_BK: Tensor = self.head(self.ln_f(last_BC))
        return logits_BK.float()

    def read_one(
        self,
        tokens_B: Tensor,
        slots_B: Tensor,
        at_B: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        rows: int,
        *,
        beside: bool,
    ) -> Tensor:
        """Read one token of each of some slots, as :meth:`read` does, where all numbers lie on the device: to be compiled.

        Shapes depend on no position: of the cache's ``keys`` and ``values`` the first ``rows`` positions are looked at, and
        those behind ``at_B`` are masked. ``beside``: the slots are 0, 1, .. in order, so that nothing is copied to bring them
        side by side. Slots may repeat where all else does, too.
        """
        x_B1C = (self.tok_emb(tokens_B) + self.pos_emb[0, at_B])[:, None]
        seen_B11P = (torch.arange(rows, device=at_B.device) <= at_B[:, None])[:, None, None]
        for block, keys_SHPD, values_SHPD in zip(self._blocks(), keys, values, strict=True):
            q, k, v = block.attn.split(block.ln1(x_B1C))
            found = []
            for held_SHPD, new_BH1D in ((keys_SHPD, k), (values_SHPD, v)):
                held_SHPD[slots_B, :, at_B] = new_BH1D[:, :, 0].to(held_SHPD.dtype)
                chosen = held_SHPD[: len(slots_B), :, :rows] if beside else held_SHPD[:, :, :rows].index_select(0, slots_B)
                found.append(chosen.to(q.dtype))
            # Spelled out: a compiler makes better code of it than the kernels that take a mask are for one query.
            scores_BH1P = (q @ found[0].transpose(2, 3)) * q.shape[-1] ** -0.5
            weights_BH1P = scores_BH1P.masked_fill(~seen_B11P, -torch.inf).softmax(dim=-1)
            x_B1C = x_B1C + block.attn.join(weights_BH1P @ found[1])
            x_B1C = x_B1C + block.mlp(block.ln2(x_B1C))
        logits_BK: Tensor = self.head(self.ln_f(x_B1C[:, 0]))
        return logits_BK.float()

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def _require_room(self, positions: int) -> None:
        if positions > self.config.positions:
            raise ValueError(f"{positions} positions do not fit a window of {self.config.positions}; slide it first")
