"""Frames to clips to blocks: the bank of memories, the frames of open clips, and the encoding of many streams together.

Knows slots, no rows and no questions. The memory that a clip sees is the newest block of its stream, so that nothing else has
to be kept of the past.
"""

# B clips of a round, T frames of a clip, N tokens per frame, C width of a token, M memory tokens, D width of a memory

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.bounds import AlwaysFinite, largest_of
from models.compiled import per_frame
from models.uploads import upload, upload_values
from models.videostreaming.encoding import Clip, EncodedClip, encode_clips
from models.videostreaming.selection import stored_indicator
from operators.banks import REFUSED, BlockReader, Fills, RowSpec, SlotBank, append
from operators.block_options import open_bank
from operators.frame_features import PIXEL, frame_features
from operators.frames import Frame
from operators.rounds import rounds
from operators.state import State
from operators.videostreaming.answering import Answering, memory_of
from operators.videostreaming.config import VideoStreamingOptions
from operators.videostreaming.rules import ClipCodec, clip_spec

__all__ = ["ClipEncoding", "EndedClip", "StoredClip"]

_FEATURE, _MEMORY = 1e9, 1e6
"""Bounds under which the encoder is proved to give finite numbers: of a frame's tokens, and of memories."""


@dataclass(frozen=True, slots=True, eq=False)
class EndedClip:
    """A clip that is to be encoded. Times are microseconds from the stream's first frame."""

    slot: int
    number: int
    features_TNC: Tensor
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredClip:
    """What became of a clip: its indicator [D]; ``usable`` False: it was not finite; ``stored`` False: no room."""

    indicator_D: Tensor
    usable: bool = True
    stored: bool = True


class ClipEncoding:
    """The memories of all streams of a shard, and the frames of their open clips."""

    def __init__(self, name: str, answering: Answering, options: VideoStreamingOptions, device: torch.device) -> None:
        self._answering, self._options = answering, options
        model, config = answering.ready.model, answering.ready.config
        self._config, self._width = config, model.width
        self._tokens = per_frame(model.frame_tokens, device, compiled=options.compile)
        self._finite = AlwaysFinite(model.frame_tokens, PIXEL)
        self.bank, self.clips_per_stream = open_bank(
            name,
            clip_spec(config.memory_tokens, model.width, model.dtype),
            options,
            options.max_streams,
            device,
            noun="clip",
            per_stream=options.clips_per_stream,
            codec=ClipCodec(model.dtype),
        )
        tokens, width = answering.frame_tokens, model.feature_width
        self._open = SlotBank(
            "open",
            {"features": RowSpec((tokens, width), model.dtype), "time_us": RowSpec((), torch.int64)},
            slots=options.max_streams,
            capacity=config.frames_per_clip,
            device=device,
        )
        self._device = device
        self._newest_tokens: dict[int, int] = {}
        """Of the newest memory of slots, where the host has come to know."""
        self._clip_is_finite: bool | None = None
        """What is proved of the encoder; None: nothing was tried yet."""
        self._unproved: set[int] = set()
        """Slots with an open clip of a snapshot: nothing is proved of its frames."""

    # Streams

    def open(self, slot: int, key: int) -> None:
        """Make a slot ready for a new stream; its files are named by ``key``."""
        self.bank.open([slot], [key])
        self._open.open(self._slots([slot]), torch.tensor([key]))
        self._newest_tokens.pop(slot, None)
        self._unproved.discard(slot)

    def release(self, slot: int) -> None:
        """Forget a slot's memories and frames."""
        self.bank.release([slot])
        self._open.release(self._slots([slot]))

    def first(self, slot: int) -> int:
        """Return the number of the oldest clip of a stream that is still there."""
        return int(self.bank.first([slot])[0])

    def room(self, slot: int) -> int:
        """Return how many clips a stream can take before its oldest ones must go."""
        return self.clips_per_stream - int(self.bank.count([slot])[0]) + self.first(slot)

    def reader(self, slot: int, below: int) -> BlockReader:
        """Open the memories of the clips before ``below``."""
        return self.bank.reader(slot, below)

    def bytes(self) -> dict[str, int]:
        """Return the memory of each tier."""
        tiers = self.bank.bytes()
        return tiers | {"device": tiers["device"] + self._open.bytes()["device"]}

    # Frames

    @torch.inference_mode()
    def features(self, images: Sequence[Frame]) -> list[Tensor | None]:
        """Return the tokens [N, C] of RGB images of any sizes; None where they are not finite."""
        return frame_features(images, self._tokens, self._options.batch_frames, self._finite)

    def open_frames(self, slot: int, count: int) -> Tensor:
        """Return a copy of the features of the ``count`` frames of a stream's open clip, [T, N, C]."""
        return self._open.read(self._slots([slot]), known=Fills(count, count)).rows["features"][0]

    def open_times(self, slot: int) -> list[int]:
        """Return their event times."""
        times: list[int] = self._open.read(self._slots([slot])).rows["time_us"][0].tolist()
        return times

    def keep_open(self, slots: Sequence[int], clears: Sequence[bool], frames: Sequence[tuple[Tensor, list[int]]]) -> None:
        """Add frames (features [n, N, C], event times) to the open clips of streams; where ``clears``, begin new ones."""
        cleared = [slot for slot, clear in zip(slots, clears, strict=True) if clear]
        if cleared:
            self._open.clear(self._slots(cleared))
        counts = [len(times) for _, times in frames]
        if not any(counts):
            return
        pad = torch.nn.utils.rnn.pad_sequence
        features_BnNC = pad([features for features, _ in frames], batch_first=True)
        times_Bn = upload(pad([torch.tensor(times, dtype=torch.int64) for _, times in frames], batch_first=True), self._device)
        rows = {"features": features_BnNC, "time_us": times_Bn}
        self._open.write(self._slots(slots), rows, upload_values(counts, self._device), append)

    # Clips

    def encode(self, ended: Sequence[EndedClip]) -> list[StoredClip]:
        """Encode clips, those of one stream in order, and store them. Oldest ones may go."""
        stored: list[StoredClip | None] = [None] * len(ended)
        last: dict[int, Tensor | None] = {}  # newest memories, so that they are read once
        for turn in rounds(np.array([clip.slot for clip in ended], np.int64)):
            for start in range(0, len(turn), self._options.batch_clips):
                chosen = turn[start : start + self._options.batch_clips].tolist()
                for i, one in zip(chosen, self._encode([ended[i] for i in chosen], last), strict=True):
                    stored[i] = one
        return [one for one in stored if one is not None]

    @torch.inference_mode()
    def _encode(self, ended: Sequence[EndedClip], last: dict[int, Tensor | None]) -> list[StoredClip]:
        """Encode clips of different streams together."""
        ready = self._answering.ready
        clips = []
        for one in ended:
            if one.slot not in last:
                last[one.slot] = self._newest(one.slot)
            time_ids = ready.time_ids(one.start_us / 1e6, one.end_us / 1e6, first=one.number == 0)
            clips.append(Clip(one.features_TNC, time_ids, last[one.slot]))
        encoded = encode_clips(ready.model, clips)
        finite_B = [True] * len(clips)
        if self._device.type == "cpu" or not self._proved(ended, clips[0]):
            looks = [row.memory_MD.isfinite().all() & row.indicator_D.isfinite().all() for row in encoded]
            finite_B = torch.stack(looks).tolist()
        memory_BMD = torch.zeros(
            len(ended), self._config.memory_tokens, self._width, dtype=ready.model.dtype, device=self._device
        )
        indicator_BD = torch.zeros(len(ended), self._width, device=self._device)
        facts = []
        for i, (one, row, finite) in enumerate(zip(ended, encoded, finite_B, strict=True)):
            kept = row.memory_MD if finite else last[one.slot]
            tokens = 0 if kept is None else len(kept)
            if kept is not None:
                memory_BMD[i, :tokens] = kept
            if finite:
                indicator_BD[i] = stored_indicator(row.indicator_D, self._config.similarity)
                last[one.slot] = row.memory_MD
            self._newest_tokens[one.slot] = tokens
            facts.append((one.start_us, one.end_us, tokens))
        facts_B13 = upload_values(facts, self._device).unsqueeze(1)
        blocks_B11MD = memory_BMD[:, None, None]
        numbers = self.bank.append(
            [one.slot for one in ended], blocks_B11MD, blocks_B11MD, indicator_BD[:, None, None], {"facts": facts_B13}
        ).tolist()
        return [self._stored(*row) for row in zip(encoded, finite_B, numbers, strict=True)]

    def _stored(self, encoded: EncodedClip, finite: bool, number: int) -> StoredClip:
        return StoredClip(encoded.indicator_D.float(), usable=finite, stored=number != REFUSED)

    def _newest(self, slot: int) -> Tensor | None:
        """Return the newest memory of a stream, None before its first one."""
        with self.bank.reader(slot) as reader:
            return memory_of(reader, self._newest_tokens.get(slot))

    def _proved(self, ended: Sequence[EndedClip], clip: Clip) -> bool:
        """Tell whether memories and indicators of these clips, of which one is given, are finite without a look at them."""
        slots = {one.slot for one in ended}
        known = not slots & self._unproved and self._finite.worst <= _FEATURE
        self._unproved -= slots
        if known and self._clip_is_finite is None:
            self._clip_is_finite = self._encoder_is_finite(clip)
        return known and bool(self._clip_is_finite)

    def _encoder_is_finite(self, clip: Clip) -> bool:
        """Tell whether the encoder gives no memory above the bound of those it is given, so that none ever exceeds it."""
        config, model = self._config, self._answering.ready.model
        features_TNC = clip.features_TNC[:1].expand(config.frames_per_clip, -1, -1).contiguous()
        memory_MD = features_TNC.new_zeros((config.memory_tokens, self._width), dtype=model.dtype)

        def encode(features_TNC: Tensor, memory_MD: Tensor, time_ids_n: Tensor) -> Sequence[Tensor]:
            row = encode_clips(model, [Clip(features_TNC, time_ids_n, memory_MD)])[0]
            return row.memory_MD, row.indicator_D

        time_ids_n = upload_values([0], self._device)
        return largest_of(encode, (features_TNC, _FEATURE), (memory_MD, _MEMORY), (time_ids_n, 0.0)) <= _MEMORY

    # Snapshots

    def export(self, slots: Sequence[int], state: State, *, incremental: bool) -> None:
        """Add these streams to ``state``."""
        self.bank.export(slots, state, incremental=incremental)
        self._open.export(self._slots(slots), state, incremental=incremental)

    def load(self, slots: Sequence[int], state: State) -> None:
        """Take these streams from a full ``state``, in its order; forget all others."""
        self._open.release(self._slots(range(self._options.max_streams)))
        self._newest_tokens.clear()
        self._unproved = set(slots)
        if not slots:
            self.bank.release(range(self.bank.slots))
            return
        self.bank.load(slots, state)
        self._open.load(self._slots(slots), state)

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self.bank.mark_clean()
        self._open.mark_clean()

    def _slots(self, slots: Sequence[int]) -> Tensor:
        return upload_values(list(slots), self._device, torch.int64)
