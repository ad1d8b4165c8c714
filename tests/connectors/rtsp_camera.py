"""An RTSP camera for tests, on loopback: H.264 in RTP packets within the RTSP connection; it can die and come back."""

from __future__ import annotations

import base64
import contextlib
import itertools
import socket
import socketserver
import struct
import threading
import time
from fractions import Fraction
from typing import Any

import av
import numpy as np
from ports import free_ports

__all__ = ["RtspCamera"]

_CLOCK = 90_000
_FPS = 25


def _units(width: int, height: int, frames: int = 10) -> list[list[bytes]]:
    """Return frames that get brighter, each as its NAL units; the first is a key frame with the parameter sets before it."""
    context: Any = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt, context.time_base = width, height, "yuv420p", Fraction(1, _FPS)
    context.options = {"tune": "zerolatency", "x264-params": "annexb=1:keyint=10:sliced-threads=0:slice-max-size=1000"}
    packets = []
    for number in range(frames):
        frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 20 * number, np.uint8), format="rgb24")
        frame.pts = number
        packets += context.encode(frame)
    packets += context.encode(None)
    return [[unit.strip(b"\0") for unit in bytes(packet).split(b"\0\0\1") if unit.strip(b"\0")] for packet in packets]


class RtspCamera:
    """Listens between ``start`` and ``kill``; dies without a farewell."""

    def __init__(self) -> None:
        (self._port,) = free_ports()
        self._server: Any = None
        self._clients: set[Any] = set()

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self._port}/camera"

    def start(self, width: int, height: int) -> None:
        """Serve frames of this size."""
        camera, units = self, _units(width, height)

        class Client(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                camera._clients.add(self.connection)
                with contextlib.suppress(OSError):
                    camera._answer(self, units)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that go

        self._server = Server(("127.0.0.1", self._port), Client)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def kill(self) -> None:
        """Close everything at once."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._clients.clear()

    def _answer(self, client: Any, units: list[list[bytes]]) -> None:
        while request := client.rfile.readline().decode().split():
            fields = {}
            while line := client.rfile.readline().decode().strip():
                name, _, value = line.partition(":")
                fields[name.lower()] = value.strip()
            body, more = b"", ""
            if request[0] == "OPTIONS":
                more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif request[0] == "DESCRIBE":
                body, more = _describe(units[0]), "Content-Type: application/sdp\r\n"
            elif request[0] == "SETUP":
                more = f"Transport: {fields['transport']}\r\nSession: 1\r\n"
            head = f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
            client.wfile.write(head.encode() + body)
            if request[0] == "PLAY":
                threading.Thread(target=self._play, args=(client, units), daemon=True).start()

    def _play(self, client: Any, units: list[list[bytes]]) -> None:
        sequence = itertools.count()
        try:
            for number, frame in enumerate(itertools.cycle(units)):
                for unit in frame:
                    last = 0x80 if unit is frame[-1] else 0
                    head = struct.pack(">BBHII", 0x80, 96 | last, next(sequence) % 65536, number * _CLOCK // _FPS, 1)
                    client.wfile.write(struct.pack(">cBH", b"$", 0, len(head + unit)) + head + unit)
                time.sleep(1 / _FPS)
        except (OSError, ValueError):
            pass


def _describe(first: list[bytes]) -> bytes:
    """Return the session description; parameter sets are the NAL units of types 7 and 8."""
    sets = ",".join(base64.b64encode(unit).decode() for unit in first if unit[0] & 31 in (7, 8))
    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=camera", "t=0 0", "m=video 0 RTP/AVP 96", "c=IN IP4 0.0.0.0"]
    lines += [f"a=rtpmap:96 H264/{_CLOCK}", f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets}", "a=control:track0"]
    return ("\r\n".join(lines) + "\r\n").encode()
