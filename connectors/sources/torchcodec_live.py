"""A camera decoded by TorchCodec: PyAV takes the packets off the network, TorchCodec decodes them in order.

TorchCodec's decoder opens URLs too, but waits without limit for a camera that is silent, and refuses what does not say how
long it is. So it reads a Matroska file that is written packet by packet while it is read and claims to last thirty years. Frame
n + 1 is asked for behind frame n, for which it never seeks; for frame 0 it goes back to the start once.
"""

# H height, W width

from __future__ import annotations

import atexit
import logging
import os
import struct
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from connectors.extras import optional
from connectors.sources.camera_list import masked
from connectors.sources.frames import Bytes
from connectors.sources.grabber import Timing
from connectors.sources.torchcodec_capture import TorchCodecCapture, tell_fallback

av = optional("av")
decoders = optional("torchcodec.decoders")

__all__ = ["LiveCapture", "PacketFile", "connect_by_torchcodec", "torchcodec_problem"]

logger = logging.getLogger(__name__)

_CODECS = {
    "av1": "V_AV1",
    "h264": "V_MPEG4/ISO/AVC",
    "hevc": "V_MPEGH/ISO/HEVC",
    "mjpeg": "V_MJPEG",
    "mpeg1video": "V_MPEG1",
    "mpeg2video": "V_MPEG2",
    "mpeg4": "V_MPEG4/ISO/ASP",
    "vp8": "V_VP8",
    "vp9": "V_VP9",
}
"""FFmpeg's names of codecs → Matroska's."""

_SCALE_NS = 1000
_LASTS_US = 30 * 365 * 86400 * 1e6
_FIRST_US = 1_000_000
"""Time of the first packet: what is shown before it may come after it."""
_JUMP_US = 10_000_000
"""A step of time of more than this is none: the camera's clock was set, or its counter wrapped."""
_PATIENCE_S = 60.0
"""How long the end of the process waits at most for a camera that is silent: its read timeout, if that is not longer."""
_READ_AHEAD = 100
"""Packets that the decoder may have taken ahead, more than it does: so many may fail in a row before a new one comes."""
_RATE = 25.0
"""Of a camera that tells none."""


class _Live:
    """The captures that are open. If the interpreter ended before they are released, TorchCodec would abort the process.

    A thread releases its capture when the next packet has come, or after the read timeout of its camera.
    """

    def __init__(self) -> None:
        self.leaving = False
        """The interpreter is about to end: nothing is read or opened anymore."""
        self._captures: weakref.WeakSet[LiveCapture] = weakref.WeakSet()
        self._change = threading.Condition()
        atexit.register(self._leave)

    def add(self, capture: LiveCapture) -> None:
        """Wait for a capture. Raise ``RuntimeError`` where it is too late for one."""
        with self._change:
            if self.leaving:
                raise RuntimeError("the process ends")
            self._captures.add(capture)

    def remove(self, capture: LiveCapture) -> None:
        """Wait for it no longer."""
        with self._change:
            self._captures.discard(capture)
            self._change.notify_all()

    def _leave(self) -> None:
        with self._change:
            self.leaving = True
            self._change.wait_for(lambda: not self._captures, _PATIENCE_S)


_live = _Live()


def connect_by_torchcodec(address: str | int, timing: Timing, *, transport: str, device: str | None) -> LiveCapture | None:
    """Open the camera at a URL; None if it cannot be opened. Raise ``LookupError`` where it can, but not be decoded.

    ``transport``: of RTSP. ``device``: where frames are decoded and stay; None: on the CPU, and the capture gives their pixels.
    """
    problem = torchcodec_problem(address)
    if problem is not None:
        raise LookupError(problem)
    options = {"rtsp_transport": transport} if str(address).startswith("rtsp") else {}
    try:
        container = av.open(address, options=options, timeout=(timing.open_timeout_s, timing.read_timeout_s))
    except (av.FFmpegError, OSError, ValueError):
        return None
    try:
        return LiveCapture(container, device)
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        logger.info("torchcodec_failed error=%s", masked(str(error)))
        container.close()
        return None
    except LookupError:
        container.close()
        raise


def torchcodec_problem(address: object) -> str | None:
    """Say why the camera at an address cannot be decoded by TorchCodec, None where it may be."""
    if str(address).isdecimal() or str(address).startswith("/dev/"):
        return f"{address!r} is a device of this machine, from which torchcodec cannot read; use decoder: opencv, or a URL"
    return None


class LiveCapture(TorchCodecCapture):
    """An open camera (``connectors.sources.grabber.Capture``). Frames have the size of the first one, as OpenCV gives them;
    those that stay on a ``device``, their own.
    """

    def __init__(self, container: Any, device: str | None) -> None:
        """Wait for the first packets; raise ``LookupError`` where there is no video that TorchCodec takes."""
        self._container, self._device = container, device
        self._file: Any
        self._failed = 0  # in a row, without a new packet
        _live.add(self)
        try:
            self._file = PacketFile(container)
            super().__init__(self._open())
        except BaseException:
            self._file = None
            _live.remove(self)
            raise

    def grab(self) -> bool:
        """Wait for the next frame; false when the camera is lost. A frame that cannot be decoded is one, without an image."""
        self._frame = None
        while self._decoder is not None:
            before = self._file.packets
            try:
                self._frame = self._decoder.get_frame_at(self._next)
            except (RuntimeError, ValueError, IndexError) as error:
                self._failed = self._failed + 1 if self._file.packets == before else 0
                if self._file.ended or _live.leaving or self._failed > _READ_AHEAD:
                    return False
                logger.info("torchcodec_decode_failed frame=%d error=%s", self._next, error)
                if self._next:
                    return True
                # Frame 0 would be looked for at the same place again: begin behind what cannot be decoded.
                self._file = PacketFile(self._container, self._file)
                try:
                    self._decoder = self._open()
                except (LookupError, RuntimeError, ValueError):
                    return False
                continue
            self._next += 1
            self._failed = 0
            self._file.keep_nothing()
            return True
        return False

    def retrieve(self, slot: Bytes | None = None) -> tuple[bool, Any]:
        """Return the frame that was grabbed last: BGR pixels, or the tensor where frames stay on a device."""
        if self._device is None or self._frame is None:
            return super().retrieve(slot)
        return True, self.kept()

    def release(self) -> None:
        """Let the camera go."""
        super().release()
        self._file = None
        self._container.close()
        _live.remove(self)

    def _open(self) -> Any:
        try:
            decoder = decoders.VideoDecoder(
                self._file,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,  # more would each hold a frame back
                seek_mode="approximate",
                device=self._device or "cpu",
            )
        except IndexError as error:
            raise LookupError(str(error)) from error
        tell_fallback(decoder, "camera")
        return decoder


class PacketFile:
    """The packets of a camera as a Matroska file, for one reader that follows. It holds what has not been read, and before
    ``keep_nothing`` all from its start.

    ``after``: the file whose packets came before.
    """

    def __init__(self, container: Any, after: PacketFile | None = None) -> None:
        if not container.streams.video:
            raise LookupError("there is no video")
        self._stream = container.streams.video[0]
        self._packets: Iterator[Any] = container.demux(self._stream) if after is None else after._packets
        rate = self._stream.average_rate or self._stream.base_rate
        self._rate = float(rate) if rate and 1 <= rate <= 1000 else _RATE
        self._content = bytearray(_head(self._stream, self._rate))
        self._start = 0  # of the content within the file
        self._at = 0
        self._short = False  # the last read has returned less than it was asked for
        self._rewinds = True
        self._origin_us: float | None = None
        self._time_us = 0
        self.packets = 0
        """How many have come."""
        self.ended = False
        """No more will come."""

    def read(self, size: int) -> bytes:
        """Return what there is, waiting for a packet where there is nothing; nothing at the end.

        TorchCodec asks again until it has ``size`` bytes or gets none, so a short answer is followed by an empty one.
        """
        if self._short or (self._at == self._start + len(self._content) and not self._take()):
            self._short = False
            return b""
        begin = self._at - self._start
        content = bytes(self._content[begin : begin + size])
        self._at += len(content)
        if not self._rewinds:
            self._forget()
        self._short = len(content) < size
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte that is still there; return -1 where it is not."""
        if whence != os.SEEK_SET or not self._start <= offset <= self._start + len(self._content):
            return -1
        self._at, self._short = offset, False
        return offset

    def keep_nothing(self) -> None:
        """From now on forget what has been read."""
        if self._rewinds:
            self._rewinds = False
            self._forget()

    def _forget(self) -> None:
        del self._content[: self._at - self._start]
        self._start = self._at

    def _take(self) -> bool:
        """Append the next packet; false at the end, and where the camera is silent for too long."""
        while not (self.ended or _live.leaving):
            try:
                packet = next(self._packets)
            except (StopIteration, av.FFmpegError, OSError) as error:
                logger.info("camera_ended error=%s", masked(str(error)))
                packet = None
            if packet is None or not packet.size:  # the last one is empty
                self.ended = packet is None or packet.dts is None
                continue
            self.packets += 1
            # A key each, so that each gets a place in the reader's index and going back to the first needs no second key.
            block = _element(0xA3, b"\x81\0\0\x80", bytes(packet))
            self._content += _element(0x1F43B675, _element(0xE7, struct.pack(">q", self._time_of(packet))), block)
            return True
        return False

    def _time_of(self, packet: Any) -> int:
        """Return a time in microseconds that follows those of before: the packet's own, else counted."""
        step_us = 1e6 / self._rate
        counted_us = self._time_us + step_us if self.packets > 1 else _FIRST_US
        if packet.pts is None or packet.time_base is None:
            self._time_us = round(counted_us)
            return self._time_us
        own_us = float(packet.pts * packet.time_base) * 1e6
        if self._origin_us is None or abs(own_us - self._origin_us - self._time_us) > _JUMP_US or own_us < self._origin_us:
            self._origin_us = own_us - counted_us
        self._time_us = round(own_us - self._origin_us)
        return self._time_us


def _head(stream: Any, rate: float) -> bytes:
    """Return what stands before the packets. Raise ``LookupError`` for a codec that is not known here."""
    context = stream.codec_context
    codec = context.codec.canonical_name if context is not None else "unknown"
    if codec not in _CODECS:
        raise LookupError(f"its codec is {codec}; torchcodec takes {', '.join(_CODECS)} of cameras; use decoder: opencv")
    size = _element(0xB0, _number(context.width)) + _element(0xBA, _number(context.height))
    track = [
        _element(0xD7, _number(1)),
        _element(0x73C5, _number(1)),
        _element(0x83, _number(1)),  # video
        _element(0x9C, _number(0)),
        _element(0x86, _CODECS[codec].encode()),
        _element(0x63A2, context.extradata) if context.extradata else b"",
        _element(0x23E383, _number(round(1e9 / rate))),
        _element(0xE0, size),
    ]
    info = _element(0x2AD7B1, _number(_SCALE_NS)) + _element(0x4489, struct.pack(">d", _LASTS_US))
    head = _element(0x4282, b"matroska") + _element(0x4287, _number(4)) + _element(0x4285, _number(2))
    parts = [_element(0x1549A966, info), _element(0x1654AE6B, _element(0xAE, *track))]
    return _element(0x1A45DFA3, head) + _id(0x18538067) + b"\x01" + 7 * b"\xff" + b"".join(parts)  # of unknown length


def _id(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _element(number: int, *parts: bytes) -> bytes:
    """Return an element of Matroska's container format (RFC 8794), its length in eight bytes."""
    content = b"".join(parts)
    return _id(number) + b"\x01" + len(content).to_bytes(7, "big") + content
