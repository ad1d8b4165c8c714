"""The MAMBA detector with its banks, as steps over batches of streams. It knows slots and tensors, no records and no ids.

``look`` is the part without memory and takes any frames; ``start`` and ``step`` take one frame each of distinct streams. A
frame whose features are not finite is reported and leaves banks and draws untouched.
"""

# B streams of a step, T reference frames of all of them, N proposals, C channels, K keys, D detections, H heads, P cells

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.compiled import bucketed
from models.mamba.attention import Attention
from models.mamba.heads import Proposals
from models.mamba.model import Detections, Mamba, PaddedDetections
from models.uploads import upload
from operators.banks import (
    Fills,
    ReadBuffer,
    Readout,
    RowSpec,
    Sampler,
    SlotBank,
    random_replacement,
    sample_without_replacement,
    stream_seed,
)
from operators.budget import check_budget
from operators.mamba.config import MAX_REFERENCES, MambaOptions
from operators.mamba.rules import Boxes, CellRule, CellSelector, select_cells
from operators.precision import network_dtype
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
        self._dtype = network_dtype(options) or next(model.parameters()).dtype
        self.model: Mamba = model.to(device, self._dtype).to(memory_format=torch.channels_last).eval()
        self._compiled = bucketed(self.model.encode, device) if options.compile else None
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
        # What the host knows of the fills without looking at the device: exact between steps, bounds within one.
        self._least_LS, self._most_LS = (np.zeros((len(banks), options.max_streams), np.int64) for _ in range(2))

    def bytes(self) -> int:
        """Return the bytes of all banks."""
        return sum(size for bank in self.banks for size in bank.bytes().values())

    # Slots

    def open(self, slot: int, stream_id: str) -> None:
        """Give a slot to a new stream."""
        for bank in self.banks:
            seed = torch.tensor([stream_seed(self.options.seed, stream_id, bank.name)])
            bank.open(upload(torch.tensor([slot]), self.device), upload(seed, self.device))
        self._note(torch.tensor([slot]), 0)

    def release(self, slot: int) -> None:
        """Take the slot back of a stream that has ended."""
        for bank in self.banks:
            bank.release(upload(torch.tensor([slot]), self.device))
        self._note(torch.tensor([slot]), 0)

    def clear(self, slots_B: Tensor) -> None:
        """Forget the memory of these streams; their draws go on. Slots are given on the host, here and below."""
        for bank in self.banks:
            bank.clear(upload(slots_B, self.device))
        self._note(slots_B, 0)

    def is_empty(self, slots_B: Tensor) -> list[bool]:
        """Tell which streams have no memory yet and need ``start``. Without banks: none."""
        if not self.banks:
            return [False] * slots_B.shape[0]
        flags: list[bool] = (self._most_LS[-1, slots_B.numpy()] == 0).tolist()
        return flags

    def _note(self, slots_B: Tensor, fills_LB: npt.ArrayLike) -> None:
        self._least_LS[:, slots_B.numpy()] = fills_LB
        self._most_LS[:, slots_B.numpy()] = fills_LB

    def recount(self, slots_B: Tensor) -> None:
        """Look at the fills of these slots, after somebody else has written to the banks."""
        fills = [bank.fill(slots_B.to(self.device)).cpu().numpy() for bank in self.banks]
        self._note(slots_B.cpu(), np.stack(fills) if fills else 0)

    def _known(self, bank: int, slots_B: npt.NDArray[np.int64]) -> Fills | None:
        """Return what is known of the fills of a bank; on the CPU a look costs nothing and tells more."""
        if self.device.type == "cpu":
            return None
        return Fills(int(self._least_LS[bank, slots_B].min()), int(self._most_LS[bank, slots_B].max()))

    def _note_write(self, bank: int, slots_B: npt.NDArray[np.int64], rows: int) -> None:
        self._most_LS[bank, slots_B] = np.minimum(self._most_LS[bank, slots_B] + rows, self.banks[bank].capacity)

    # Frames

    @torch.inference_mode()
    def look(self, pixels_BCHW: Tensor, sizes_B2: Tensor) -> Frames:
        """Run what needs no memory on frames of one padded size."""
        encode = self._compiled or self.model.encode
        map_BCHW = encode(pixels_BCHW.to(self._dtype, memory_format=torch.channels_last))
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
        streams, host_B = slots_B.shape[0], slots_B.numpy()
        there_B = upload(slots_B, self.device)
        images, owner_of, first = frames, np.arange(streams), 0
        if references is not None:
            images, first = Frames.cat([references, frames]), owner_T.shape[0]
            owner_of = np.concatenate([owner_T.numpy(), owner_of])
        owners = upload(torch.from_numpy(owner_of), self.device)
        seen = self._propose(images)
        assert seen.h_BNC is not None and seen.proposals is not None
        finite_B = seen.finite_B[first:]
        write_T = seen.finite_B & finite_B[owners]
        turns = [(rank, upload(torch.from_numpy(rank), self.device)) for rank in rounds(owner_of)]

        topk = min(self.options.write_topk, seen.h_BNC.shape[1])
        plain_TNC = seen.h_BNC[:, :topk]
        count_T = seen.proposals.valid_BN[:, :topk].sum(1) * write_T
        # What gets enhanced: the frames; for the pixel level also the references, whose boxes choose cells.
        asked = seen
        if self._pixel is None and references is not None:
            asked = seen.take(torch.arange(first, first + streams, device=self.device))
        owner_B = owners if self._pixel is not None and references is not None else None
        assert asked.h_BNC is not None
        h_BNC = asked.h_BNC
        used: list[Tensor] = []
        for stage, (fc, attention) in enumerate(self._layers()):
            if stage:
                h_BNC, plain_TNC = fc(F.relu(h_BNC)), fc(F.relu(plain_TNC))
            if not self._stages:
                continue
            bank = self._stages[stage]
            for turn, (rank, there) in enumerate(turns, start=1):
                rows, slots = _project(attention, plain_TNC[there]), host_B[owner_of[rank]]
                bank.write(
                    there_B[owners[there]],
                    rows,
                    count_T[there],
                    self._fill,
                    purpose=_REPLACE + turn * _TURN,
                    known=self._known(stage, slots),
                )
                self._note_write(stage, slots, topk)
            readout = bank.read(there_B, split=True, known=self._known(stage, host_B))
            used.append(readout.valid_BK.sum(1))
            h_BNC = h_BNC + self._attend(attention, h_BNC, readout, owner_B)
        cls, reg = self.model.head.predict(F.relu(h_BNC))
        detections = self._detect(cls, reg, asked)
        if self._pixel is None:
            return self._found(slots_B, there_B, detections, finite_B, used, written_B=finite_B)
        assert images.map_BCHW is not None and self._pixels is not None
        self._write_cells(host_B, there_B, owner_of, turns, detections, images.map_BCHW, write_T, first_turn=1)
        return self._step(slots_B, frames, finite_B)

    @torch.inference_mode()
    def step(self, slots_B: Tensor, frames: Frames, *, write_B: Tensor) -> Found:
        """Take the next frame of B streams: read, enhance, detect, write; without the write where ``write_B`` is false."""
        return self._step(slots_B, frames, upload(write_B, self.device))

    def _step(self, slots_B: Tensor, frames: Frames, write_B: Tensor) -> Found:
        used: list[Tensor] = []
        pixel_used: list[Tensor] = []
        host_B, there_B = slots_B.numpy(), upload(slots_B, self.device)
        if self._pixel is not None and self._pixels is not None:
            assert frames.map_BCHW is not None
            known = self._known(len(self.banks) - 1, host_B)
            readout = self._pixels.sample(there_B, self.options.pixel_key_length, purpose=_READ, split=True, known=known)
            pixel_used.append(readout.valid_BK.sum(1))
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
                known = self._known(stage, host_B)
                readout = self._stages[stage].sample(there_B, self.options.key_length, purpose=_READ, split=True, known=known)
                used.append(readout.valid_BK.sum(1))
                h_BNC = h_BNC + self._attend(attention, h_BNC, readout)
                enhanced.append(h_BNC[:, : self.options.write_topk])
        finite_B = seen.finite_B & _finite(h_BNC)
        cls, reg = self.model.head.predict(F.relu(h_BNC))
        detections = self._detect(cls, reg, seen)

        written_B = write_B & finite_B
        if enhanced:
            count_B = seen.proposals.valid_BN[:, : self.options.write_topk].sum(1) * self._due(there_B, written_B)
            for stage, (attention, rows_BNC) in enumerate(zip(self._attentions(), enhanced, strict=True)):
                rows, known = _project(attention, rows_BNC), self._known(stage, host_B)
                self._stages[stage].write(there_B, rows, count_B, self._replace, purpose=_REPLACE, known=known)
                self._note_write(stage, host_B, rows_BNC.shape[1])
        if self._pixels is not None:
            assert frames.map_BCHW is not None
            owners = np.arange(slots_B.shape[0])
            turns = [(owners, torch.arange(len(owners), device=self.device))]
            self._write_cells(host_B, there_B, owners, turns, detections, frames.map_BCHW, self._due(there_B, written_B))
        return self._found(slots_B, there_B, detections, finite_B, used + pixel_used, written_B)

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
        valid_BK = None if readout.full else readout.valid_BK  # the kernels without a mask are faster
        keys, values = readout.rows["key"], readout.rows["value"]
        if owner_B is not None:
            keys, values = keys[owner_B], values[owner_B]
            valid_BK = None if valid_BK is None else valid_BK[owner_B]
        return attention.attend(attention.query(x_BNC), keys, values, valid_BK)

    def _detect(self, cls: Tensor, reg: Tensor, frames: Frames) -> PaddedDetections:
        assert frames.proposals is not None
        return self.model.detect_padded(cls, reg, frames.proposals, frames.sizes_B2, torch.ones_like(frames.sizes_B2))

    def _due(self, slots_B: Tensor, written_B: Tensor) -> Tensor:
        """Narrow ``written_B`` to the streams whose turn it is to write (``write_every``)."""
        return written_B & (self.banks[0].step(slots_B) % self.options.write_every == 0)

    def _write_cells(
        self,
        host_B: npt.NDArray[np.int64],
        slots_B: Tensor,
        owner_of: npt.NDArray[np.int64],
        turns: Sequence[tuple[npt.NDArray[np.int64], Tensor]],
        detections: PaddedDetections,
        map_TCHW: Tensor,
        write_T: Tensor,
        first_turn: int = 0,
    ) -> None:
        """Write the cells of T images to the pixel banks of their streams ``owner_of``, in order within each stream."""
        bank, attention, number = self._pixels, self._pixel, len(self.banks) - 1
        assert bank is not None and attention is not None
        seed_B, step_B = bank.seed(slots_B), bank.step(slots_B)
        for turn, (rank, there) in enumerate(turns, start=first_turn):
            slots, map_BCHW = host_B[owner_of[rank]], map_TCHW[there]
            owner_B = upload(torch.from_numpy(owner_of[rank]), self.device)
            cells = self._cells(
                Boxes(detections.boxes_BD4[there], detections.scores_BD[there]),
                map_BCHW,
                self._rule,
                seed_B=seed_B[owner_B],
                step_B=step_B[owner_B],
                purpose=_CELLS + turn * _TURN,
            )
            width = cells.index_BN.shape[1]
            if self.device.type == "cpu":
                width = int(cells.count_B.max())
            index_BN = cells.index_BN[:, :width]
            rows_BNC = map_BCHW.flatten(2).transpose(1, 2).gather(1, index_BN[..., None].expand(-1, -1, map_BCHW.shape[1]))
            bank.write(
                slots_B[owner_B],
                _project(attention, rows_BNC),
                cells.count_B * write_T[there],
                self._replace_pixels,
                purpose=_REPLACE + turn * _TURN,
                known=self._known(number, slots),
            )
            self._note_write(number, slots, width)

    def _found(
        self,
        slots_B: Tensor,
        there_B: Tensor,
        detections: PaddedDetections,
        finite_B: Tensor,
        used: list[Tensor],
        written_B: Tensor,
    ) -> Found:
        """Bring everything to the host: the only moment at which it waits for the device."""
        for bank in self.banks:
            bank.advance(there_B, written_B)
        counts = torch.stack([finite_B.long(), *(bank.fill(there_B) for bank in self.banks), *used]).cpu()
        first = 1 + len(self.banks)
        self._note(slots_B, counts[1:first].numpy())
        return Found(detections.images(), counts[0].bool().tolist(), counts[1:first].t().tolist(), counts[first:].t().tolist())

    # Snapshots

    def export(self, slots_N: Tensor, state: State, *, incremental: bool) -> None:
        """Add the banks' content of these slots to ``state``."""
        for bank in self.banks:
            bank.export(slots_N.to(self.device), state, incremental=incremental)

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        for bank in self.banks:
            bank.mark_clean()

    def load(self, slots_N: Tensor, state: State) -> None:
        """Take the banks' content of these slots from a full ``state``."""
        for bank in self.banks:
            bank.load(slots_N.to(self.device), state)
        fills = [state.dense[f"{bank.name}.fill"].numpy() for bank in self.banks]
        self._note(slots_N, np.stack(fills) if fills else 0)


def _project(attention: Attention, rows_BNC: Tensor) -> dict[str, Tensor]:
    """Return what banks store of these rows: keys and values, by head."""
    keys, values = (rows.unflatten(-1, (attention.heads, -1)) for rows in attention.project(rows_BNC))  # type: ignore[no-untyped-call]
    return {"key": keys, "value": values}


def _finite(feature_B: Tensor) -> Tensor:
    return feature_B.isfinite().flatten(1).all(1)
