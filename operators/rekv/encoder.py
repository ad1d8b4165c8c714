"""Frames to blocks: the bank, its budget, and the encoding of many streams together. Knows slots, no rows and no questions."""

# F frames of a call, T tokens per frame, C hidden size, H query heads, G key/value heads, D head dim

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from connectors.errors import StreambankError
from models.bounds import AlwaysFinite
from models.compiled import per_frame
from models.rekv.encoding import encode_frames
from models.rekv.layouts import BlockNumbers
from models.rekv.session import StreamState, open_stream, rebuild_window
from operators.banks import REFUSED, BlockBank, BlockReader
from operators.block_options import open_bank
from operators.frame_features import PIXEL, frame_features
from operators.frames import Frame
from operators.rekv.answering import Answering
from operators.rekv.block_policies import Stats
from operators.rekv.config import ReKVOptions
from operators.rekv.windows import load_windows
from operators.state import State

__all__ = ["FrameEncoding", "JointWriter", "SlotWriter"]


class FrameEncoding:
    """The bank of all streams of a shard, and what writes to it."""

    def __init__(self, name: str, answering: Answering, options: ReKVOptions, device: torch.device) -> None:
        self._name, self._answering, self._options = name, answering, options
        self._tokens = per_frame(answering.model.frames.tokens, device, compiled=options.compile)
        self._finite = AlwaysFinite(answering.model.frames.tokens, PIXEL)
        self.bank, self.frames_per_stream = open_bank(
            name,
            answering.spec,
            options,
            options.max_streams,
            device,
            noun="frame",
            per_stream=options.frames_per_stream,
            codec=answering.policy.codec,
            least=self._least,
        )

    def _least(self) -> tuple[int, str]:
        """Return the fewest frames of a stream that the bank must keep, and why."""
        config, tokens = self._answering.config, self._answering.spec.tokens
        if not self._answering.policy.is_exact:
            return 1 + (self._answering.grid is None), ""  # what comes next is placed by what is noted of the last one
        least = -(-(config.window_tokens + max(config.window_tokens // 4, tokens)) // self._answering.least_tokens) + 1
        return least, f"a window of {config.window_tokens} tokens needs {least}"

    # Streams

    def open(self, slot: int, key: int) -> None:
        """Open a slot of the bank for a new stream; its files are named by ``key``."""
        self.bank.open([slot], [key])

    def make(self, slot: int, numbers: BlockNumbers) -> StreamState:
        """Return a stream without frames that writes to this slot of the bank, which is opened or loaded besides.

        ``numbers``: what will be noted of its blocks.
        """
        one = self._answering
        writer = SlotWriter(self.bank, slot, one.policy.stats)
        stream = open_stream(one.model.decoder, one.config, one.prefix, one.layout(numbers), writer)
        stream.observe = writer.observe if one.policy.stats is not None else None
        return stream

    def load(self, slots: Sequence[int], streams: Sequence[StreamState], state: State) -> None:
        """Fill the bank from a full ``state``, in its order, and tell these streams how many blocks they have."""
        if not slots:
            self.bank.release(range(self.bank.slots))
            return
        self.bank.load(slots, state)
        for stream, count in zip(streams, self.bank.count(slots).tolist(), strict=True):
            stream.frames = count

    def load_windows(self, slots: Sequence[int], streams: Sequence[StreamState], state: State) -> None:
        """Make the windows of these streams, whose blocks are loaded and noted."""
        one = self._answering
        if not one.policy.is_exact:
            load_windows(streams, state, one.config.window_tokens)
            return
        for slot, stream in zip(slots, streams, strict=True):
            with self.bank.reader(slot) as blocks:
                rebuild_window(one.model.decoder, one.config, stream, blocks)

    def reader(self, slot: int, below: int) -> BlockReader:
        """Open the blocks before ``below``."""
        return self.bank.reader(slot, below)

    def first(self, slot: int) -> int:
        """Return the number of the oldest block of a stream."""
        return int(self.bank.first([slot])[0])

    def room(self, slot: int) -> int:
        """Return how many blocks a stream can take before its oldest ones must go."""
        return self.frames_per_stream - int(self.bank.count([slot])[0]) + self.first(slot)

    # Frames

    @torch.inference_mode()
    def features(self, images: Sequence[Frame]) -> list[Tensor | None]:
        """Return the tokens [T, C] of RGB images, or of blocks of images; None where they are not finite."""
        return frame_features(images, self._tokens, self._options.batch_frames, self._finite)

    def append(self, streams: Sequence[StreamState], features: Sequence[Sequence[Tensor]]) -> None:
        """Encode blocks of several streams together: they go to the bank, oldest ones may go."""
        one = self._answering
        slots = [stream.blocks.slot for stream in streams if isinstance(stream.blocks, SlotWriter)]
        encode_frames(one.model.decoder, one.config, streams, features, together=JointWriter(self.bank, slots))


class JointWriter:
    """Slots of the bank as encoding writes to them together."""

    def __init__(self, bank: BlockBank, slots: Sequence[int]) -> None:
        self._bank, self._slots = bank, slots

    def begin(self, streams: Sequence[tuple[int, int]]) -> Callable[[int, Tensor, Tensor, Tensor], None]:
        """Return what writes a layer of so many new frames of these streams."""
        slots, blocks = [self._slots[number] for number, _ in streams], [frames for _, frames in streams]

        def write(layer: int, keys_NGTD: Tensor, values_NGTD: Tensor, means_NGD: Tensor) -> None:
            keys_NGTD, values_NGTD = _whole(self._bank, keys_NGTD, values_NGTD)
            numbers = self._bank.append_rows(layer, slots, blocks, keys_NGTD, values_NGTD, means_NGD)
            _require_room(self._bank, numbers)

        return write


def _whole(bank: BlockBank, *parts_NGTD: Tensor) -> list[Tensor]:
    """Return blocks with as many rows as a page has; those that are no tokens are zeros."""
    unused = bank.spec.tokens - parts_NGTD[0].shape[2]
    return [torch.nn.functional.pad(x, (0, 0, 0, unused)) if unused else x for x in parts_NGTD]


def _require_room(bank: BlockBank, numbers: Sequence[NDArray[np.int64]]) -> None:
    if any(REFUSED in number_F for number_F in numbers):
        raise StreambankError(
            f"{bank.name}: there is no room for a frame's blocks though the stream's share is not used up; raise the budget of "
            "the lowest tier by a quarter, then resume"
        )


class SlotWriter:
    """One slot of the bank as encoding writes to it; with ``stats`` the codec learns of each layer's queries."""

    def __init__(self, bank: BlockBank, slot: int, stats: Stats | None) -> None:
        self._bank, self.slot, self._stats = bank, slot, stats
        self._queries: dict[int, Tensor] = {}

    def observe(self, layer: int, queries_NHTD: Tensor) -> None:
        """Keep the queries of a layer's new frames for the codec."""
        self._queries[layer] = queries_NHTD

    def append(self, layer: int, keys_NGTD: Tensor, values_NGTD: Tensor, representatives_NGD: Tensor) -> None:
        """Write a layer of new frames."""
        stats = {} if self._stats is None else self._stats(self._queries.pop(layer), keys_NGTD)
        keys_NGTD, values_NGTD = _whole(self._bank, keys_NGTD, values_NGTD)
        numbers = self._bank.append_rows(
            layer, [self.slot], [len(keys_NGTD)], keys_NGTD, values_NGTD, representatives_NGD, stats
        )
        _require_room(self._bank, numbers)
