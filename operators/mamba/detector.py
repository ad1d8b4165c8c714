"""The MAMBA detector with its banks, as steps over batches of streams. It knows slots and tensors, no records and no ids.

``look`` is the part without memory and takes any frames; ``start`` and ``step`` take one frame each of distinct streams. A
frame whose features are not finite is reported and leaves banks and draws untouched.
"""

# B streams of a step, T reference frames of all of them, N proposals, C channels, K keys, D detections, H heads, P cells

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mamba.attention import Attention
from models.mamba.model import Detections, Mamba
from models.mamba.rpn import Proposals
from operators.banks import (
    ReadBuffer,
    Readout,
    RowSpec,
    Sampler,
    SlotBank,
    check_budget,
    random_replacement,
    sample_without_replacement,
    stream_seed,
)
from operators.mamba.config import MAX_REFERENCES, MambaOptions
from operators.mamba.rules import Boxes, CellRule, CellSelector, select_cells
from operators.rounds import rounds
from operators.state import State

__all__ = ["Found", "Frames", "StreamDetector"]

# Purposes of random numbers within a step. A first frame writes several times; turn t of those adds t * _TURN.
_READ, _REPLACE, _CELLS, _TURN = 0, 1, 2, 3


class Frames(NamedTuple):
    """B frames after the part that needs no memory. With the pixel level that is the map, else the first layer of the head."""

    sizes_B2: Tensor
    """(h, w) px of the network input without padding."""
    map_BCHW: Tensor | None
    h_BNC: Tensor | None
    proposals: Proposals | None
    finite_B: Tensor
    """False where a feature is NaN or infinite."""

    def take(self, index: Tensor) -> Frames:
        """Return the frames at these positions."""
        return Frames.cat([self], index)

    @staticmethod
    def cat(parts: list[Frames], index: Tensor | None = None) -> Frames:
        """Join frames (those with maps must share the map's size), then take positions ``index`` of all of them."""

        def join(tensors: list[Tensor | None]) -> Tensor | None:
            there = [t for t in tensors if t is not None]
            if not there:
                return None
            joined = there[0] if len(there) == 1 else torch.cat(there)
            return joined if index is None else joined[index]

        sizes_B2, finite_B = join([p.sizes_B2 for p in parts]), join([p.finite_B for p in parts])
        columns = [join([p.proposals and p.proposals[c] for p in parts]) for c in range(3)]
        assert sizes_B2 is not None and finite_B is not None
        return Frames(
            sizes_B2,
            join([p.map_BCHW for p in parts]),
            join([p.h_BNC for p in parts]),
            None if columns[0] is None else Proposals(*columns),  # type: ignore[arg-type]
            finite_B,
        )


class Found(NamedTuple):
    """Outcome of one frame each of B streams."""

    detections: list[Detections]
    """Boxes in pixels of the network input."""
    finite_B: list[bool]
    """False: the features were not finite; nothing was written and the detections mean nothing."""
    bank_size_BL: list[list[int]]
    """Rows per bank after the frame: instance stages, then pixel."""
    keys_used_BL: list[list[int]]
    """Rows attended to, per bank."""


class StreamDetector:
    """Model, banks and read/write rules. ``sampler`` and ``cells`` draw; tests replace them by recorded draws."""

    def __init__(
        self,
        name: str,
        model: Mamba,
        options: MambaOptions,
        device: torch.device,
        *,
        sampler: Sampler = sample_without_replacement,
        cells: CellSelector = select_cells,
    ) -> None:
        # Channels last: a quarter less time in the convolutions of a CPU, and what tensor cores want.
        self.model: Mamba = model.to(device).to(memory_format=torch.channels_last).eval()
        self.options = options
        self.device = device
        self._cells = cells
        self._rule = CellRule(
            options.pixel_score,
            options.pixel_per_box,
            options.pixel_per_frame,
            options.pixel_fallback,
            float(model.config.anchor_base),
        )
        instance = options.memory and options.levels != "pixel"
        pixel = model.pixel if options.memory and options.levels != "instance" else None
        self._pixel = pixel
        overshoot = options.compat == "official"
        dtype: torch.dtype = getattr(torch, options.bank_dtype)

        def plan(bank: str, attention: Attention, capacity: int) -> tuple[str, dict[str, RowSpec], int]:
            # Projected keys and values, by head: rows are projected once, when written, not at every read.
            row = RowSpec((attention.heads, attention.query.in_features // attention.heads), dtype)
            return bank, {"key": row, "value": row}, capacity

        capacity, pixel_capacity = options.max_length, options.pixel_max_length
        if overshoot:
            images = 1 + (MAX_REFERENCES if options.init == "spread" else 0)  # all their rows are in the bank at the start
            capacity = max(capacity + options.write_topk - 1, images * options.write_topk)
            pixel_capacity += max(options.pixel_per_frame, options.pixel_fallback) - 1
        plans = []
        if instance:
            plans += [plan(f"instance{stage}", attention, capacity) for stage, attention in enumerate(self._attentions())]
        if pixel is not None:
            plans.append(plan("pixel", pixel, pixel_capacity))
        check_budget(
            name,
            bytes_per_stream=sum(SlotBank.bytes_per_slot(rows, capacity) for _, rows, capacity in plans),
            streams=options.max_streams,
            budget=int(options.bank_gib * 2**30),
            hint="Lower max_streams or max_length, choose bank_dtype=float16, or raise bank_gib",
        )
        buffer = ReadBuffer()
        banks = [
            SlotBank(bank, rows, slots=options.max_streams, capacity=capacity, device=device, sampler=sampler, buffer=buffer)
            for bank, rows, capacity in plans
        ]
        self.banks = banks
        self._stages = banks[: model.config.stages] if instance else []
        self._pixels = banks[-1] if pixel is not None else None
        self._replace = random_replacement(options.max_length, overshoot=overshoot)
        # The published start makes all rows of references and first frame the bank, however many; the limit counts afterwards.
        self._fill = random_replacement(capacity) if overshoot else self._replace
        self._replace_pixels = random_replacement(options.pixel_max_length, overshoot=overshoot)

    def bytes(self) -> int:
        """Return the bytes of all banks."""
        return sum(size for bank in self.banks for size in bank.bytes().values())

    # Slots

    def open(self, slot: int, stream_id: str) -> None:
        """Give a slot to a new stream."""
        for bank in self.banks:
            seed = torch.tensor([stream_seed(self.options.seed, stream_id, bank.name)])
            bank.open(torch.tensor([slot], device=self.device), seed)

    def release(self, slot: int) -> None:
        """Take the slot back of a stream that has ended."""
        for bank in self.banks:
            bank.release(torch.tensor([slot], device=self.device))

    def clear(self, slots_B: Tensor) -> None:
        """Forget the memory of these streams; their draws go on."""
        for bank in self.banks:
            bank.clear(slots_B)

    def is_empty(self, slots_B: Tensor) -> list[bool]:
        """Tell which streams have no memory yet and need ``start``. Without banks: none."""
        if not self.banks:
            return [False] * slots_B.shape[0]
        flags: list[bool] = (self.banks[-1].fill(slots_B) == 0).tolist()
        return flags

    # Frames

    @torch.inference_mode()
    def look(self, pixels_BCHW: Tensor, sizes_B2: Tensor) -> Frames:
        """Run what needs no memory on frames of one padded size."""
        map_BCHW = self.model.encode(pixels_BCHW.contiguous(memory_format=torch.channels_last))
        if self._pixel is not None and self.model.config.pixel_position == "neck":
            map_BCHW = self.model.neck(map_BCHW)
        frames = Frames(sizes_B2, map_BCHW, None, None, _finite(map_BCHW))
        return frames if self._pixel is not None else self._propose(frames)._replace(map_BCHW=None)

    @torch.inference_mode()
    def start(self, slots_B: Tensor, frames: Frames, references: Frames | None, owner_T: Tensor) -> Found:
        """Take the first frame of B streams, with their reference frames (``owner_T``: position in B) if they have any.

        Banks get the plain rows of references and frame; the frame attends to all of them (the official protocol; without
        references the causal variant of it). With the pixel level that is a first pass on plain maps, which fills the pixel
        bank from the boxes of references and frame, and the frame is then processed as any other. References that are not
        finite are left out.
        """
        images, key_B = frames, torch.arange(slots_B.shape[0], device=self.device)
        owners = key_B
        if references is not None:
            images = Frames.cat([references, frames])
            owners, key_B = torch.cat([owner_T, key_B]), key_B + owner_T.shape[0]
        seen = self._propose(images)
        assert seen.h_BNC is not None and seen.proposals is not None
        finite_B = seen.finite_B[key_B]
        write_T = seen.finite_B & finite_B[owners]

        topk = min(self.options.write_topk, seen.h_BNC.shape[1])
        plain_TNC = seen.h_BNC[:, :topk]
        count_T = seen.proposals.valid_BN[:, :topk].sum(1) * write_T
        # What gets enhanced: the frames; for the pixel level also the references, whose boxes choose cells.
        asked = seen if self._pixel is not None or references is None else seen.take(key_B)
        owner_B = owners if self._pixel is not None and references is not None else None
        assert asked.h_BNC is not None
        h_BNC = asked.h_BNC
        used: list[list[int]] = []
        for stage, (fc, attention) in enumerate(self._layers()):
            if stage:
                h_BNC, plain_TNC = fc(F.relu(h_BNC)), fc(F.relu(plain_TNC))
            if not self._stages:
                continue
            bank = self._stages[stage]
            for turn, rank in enumerate(_ranks(owners), start=1):
                rows = _project(attention, plain_TNC[rank])
                bank.write(slots_B[owners[rank]], rows, count_T[rank], self._fill, purpose=_REPLACE + turn * _TURN)
            readout = bank.read(slots_B, split=True)
            used.append(readout.valid_BK.sum(1).tolist())
            h_BNC = h_BNC + self._attend(attention, h_BNC, readout, owner_B)
        cls, reg = self.model.head.predict(F.relu(h_BNC))
        detections = self._detect(cls, reg, asked)
        if self._pixel is None:
            return self._found(slots_B, detections, finite_B, used, written_B=finite_B)
        assert images.map_BCHW is not None and self._pixels is not None
        self._write_cells(slots_B, owners, detections, images.map_BCHW, write_T, first_turn=1)
        return self.step(slots_B, frames, write_B=finite_B)

    @torch.inference_mode()
    def step(self, slots_B: Tensor, frames: Frames, *, write_B: Tensor) -> Found:
        """Take the next frame of B streams: read, enhance, detect, write; without the write where ``write_B`` is false."""
        used: list[list[int]] = []
        pixel_used: list[list[int]] = []
        if self._pixel is not None and self._pixels is not None:
            assert frames.map_BCHW is not None
            readout = self._pixels.sample(slots_B, self.options.pixel_key_length, purpose=_READ, split=True)
            pixel_used.append(readout.valid_BK.sum(1).tolist())
            cells_BPC = frames.map_BCHW.flatten(2).transpose(1, 2)
            cells_BPC = cells_BPC + self._attend(self._pixel, cells_BPC, readout)
            frames = frames._replace(map_BCHW=cells_BPC.transpose(1, 2).reshape(frames.map_BCHW.shape))
        seen = self._propose(frames)
        assert seen.h_BNC is not None and seen.proposals is not None
        h_BNC = seen.h_BNC
        enhanced = []
        for stage, (fc, attention) in enumerate(self._layers()):
            if stage:
                h_BNC = fc(F.relu(h_BNC))
            if self._stages:
                readout = self._stages[stage].sample(slots_B, self.options.key_length, purpose=_READ, split=True)
                used.append(readout.valid_BK.sum(1).tolist())
                h_BNC = h_BNC + self._attend(attention, h_BNC, readout)
                enhanced.append(h_BNC[:, : self.options.write_topk])
        finite_B = seen.finite_B & _finite(h_BNC)
        cls, reg = self.model.head.predict(F.relu(h_BNC))
        detections = self._detect(cls, reg, seen)

        written_B = write_B & finite_B
        if enhanced:
            count_B = seen.proposals.valid_BN[:, : self.options.write_topk].sum(1) * self._due(slots_B, written_B)
            for bank, attention, rows_BNC in zip(self._stages, self._attentions(), enhanced, strict=True):
                bank.write(slots_B, _project(attention, rows_BNC), count_B, self._replace, purpose=_REPLACE)
        if self._pixels is not None:
            assert frames.map_BCHW is not None
            owners = torch.arange(slots_B.shape[0], device=self.device)
            self._write_cells(slots_B, owners, detections, frames.map_BCHW, self._due(slots_B, written_B))
        return self._found(slots_B, detections, finite_B, used + pixel_used, written_B)

    # Parts

    def _attentions(self) -> list[Attention]:
        return list(self.model.head.attention)  # type: ignore[arg-type]

    def _layers(self) -> Iterator[tuple[nn.Module, Attention]]:
        return zip(self.model.head.fc, self._attentions(), strict=True)

    def _propose(self, frames: Frames) -> Frames:
        """Add proposals and the first layer of the head, which does not depend on memory once the map is final."""
        if frames.h_BNC is not None:
            return frames
        assert frames.map_BCHW is not None
        neck_first = self._pixel is not None and self.model.config.pixel_position == "neck"
        feature_BCHW = frames.map_BCHW if neck_first else self.model.neck(frames.map_BCHW)
        proposals = self.model.propose(feature_BCHW, frames.sizes_B2)
        h_BNC = self.model.head.fc[0](self.model.roi_features(feature_BCHW, proposals.boxes_BN4))
        finite_B = frames.finite_B & _finite(feature_BCHW) & _finite(h_BNC)
        return frames._replace(h_BNC=h_BNC, proposals=proposals, finite_B=finite_B)

    def _attend(self, attention: Attention, x_BNC: Tensor, readout: Readout, owner_B: Tensor | None = None) -> Tensor:
        """Return the attention term over rows read from a bank; ``owner_B`` says which stream's, by default one each."""
        valid_BK: Tensor | None = readout.valid_BK
        keys, values = readout.rows["key"], readout.rows["value"]
        if owner_B is not None:
            keys, values, valid_BK = keys[owner_B], values[owner_B], readout.valid_BK[owner_B]
        if bool(readout.valid_BK.all()):
            valid_BK = None  # the kernels without a mask are faster
        return attention.attend(attention.query(x_BNC), keys, values, valid_BK)

    def _detect(self, cls: Tensor, reg: Tensor, frames: Frames) -> list[Detections]:
        assert frames.proposals is not None
        return self.model.detect(cls, reg, frames.proposals, frames.sizes_B2, torch.ones_like(frames.sizes_B2))

    def _due(self, slots_B: Tensor, written_B: Tensor) -> Tensor:
        """Narrow ``written_B`` to the streams whose turn it is to write (``write_every``)."""
        return written_B & (self.banks[0].step(slots_B) % self.options.write_every == 0)

    def _write_cells(
        self,
        slots_B: Tensor,
        owner_T: Tensor,
        detections: list[Detections],
        map_TCHW: Tensor,
        write_T: Tensor,
        first_turn: int = 0,
    ) -> None:
        """Write the cells of T images to the pixel banks of their streams, in order within each stream."""
        bank, attention = self._pixels, self._pixel
        assert bank is not None and attention is not None
        seed_B, step_B = bank.seed(slots_B), bank.step(slots_B)
        for turn, rank in enumerate(_ranks(owner_T), start=first_turn):
            owner_B, map_BCHW = owner_T[rank], map_TCHW[rank]
            cells = self._cells(
                _pad_boxes([detections[i] for i in rank.tolist()]),
                map_BCHW,
                self._rule,
                seed_B=seed_B[owner_B],
                step_B=step_B[owner_B],
                purpose=_CELLS + turn * _TURN,
            )
            width = int(cells.count_B.max())
            index_BN = cells.index_BN[:, :width]
            rows_BNC = map_BCHW.flatten(2).transpose(1, 2).gather(1, index_BN[..., None].expand(-1, -1, map_BCHW.shape[1]))
            count_B = cells.count_B * write_T[rank]
            bank.write(
                slots_B[owner_B], _project(attention, rows_BNC), count_B, self._replace_pixels, purpose=_REPLACE + turn * _TURN
            )

    def _found(
        self,
        slots_B: Tensor,
        detections: list[Detections],
        finite_B: Tensor,
        used: list[list[int]],
        written_B: Tensor,
    ) -> Found:
        for bank in self.banks:
            bank.advance(slots_B[written_B])
        sizes = [bank.fill(slots_B).tolist() for bank in self.banks]
        B = slots_B.shape[0]
        return Found(
            detections,
            finite_B.tolist(),
            [[column[b] for column in sizes] for b in range(B)],
            [[column[b] for column in used] for b in range(B)],
        )

    # Snapshots

    def export(self, slots_N: Tensor, state: State, *, incremental: bool) -> None:
        """Add the banks' content of these slots to ``state``."""
        for bank in self.banks:
            bank.export(slots_N, state, incremental=incremental)

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        for bank in self.banks:
            bank.mark_clean()

    def load(self, slots_N: Tensor, state: State) -> None:
        """Take the banks' content of these slots from a full ``state``."""
        for bank in self.banks:
            bank.load(slots_N, state)


def _project(attention: Attention, rows_BNC: Tensor) -> dict[str, Tensor]:
    """Return what banks store of these rows: keys and values, by head."""
    keys, values = (rows.unflatten(-1, (attention.heads, -1)) for rows in attention.project(rows_BNC))  # type: ignore[no-untyped-call]
    return {"key": keys, "value": values}


def _finite(feature_B: Tensor) -> Tensor:
    return feature_B.isfinite().flatten(1).all(1)


def _ranks(owner_T: Tensor) -> list[Tensor]:
    """Split positions 0..T-1 into groups that name every owner once at most, keeping the order within each owner."""
    return [torch.from_numpy(rows).to(owner_T.device) for rows in rounds(owner_T.cpu().numpy())]


def _pad_boxes(detections: list[Detections]) -> Boxes:
    boxes = nn.utils.rnn.pad_sequence([d.boxes_D4 for d in detections], batch_first=True)
    scores = nn.utils.rnn.pad_sequence([d.scores_D for d in detections], batch_first=True, padding_value=-1.0)
    return Boxes(boxes, scores)
