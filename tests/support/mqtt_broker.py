"""A small MQTT 3.1.1 broker on loopback that keeps what it is sent, and can refuse and lose connections."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CONNECT, CONNACK, PUBLISH, PUBACK, PINGREQ, PINGRESP, DISCONNECT = 1, 2, 3, 4, 12, 13, 14


class Broker:
    """Takes messages of quality of service 1. ``lose_after``: cut connections, each after so many unacknowledged messages."""

    def __init__(self, user: str | None = None, password: str | None = None) -> None:
        self.user, self.password = user, password
        self.messages: list[tuple[str, dict[str, Any], bool]] = []
        """Topic, payload, retain; repeats included."""
        self.connections = 0
        self.lose_after: list[int] = []
        self.url = ""

    def once(self) -> list[tuple[str, dict[str, Any]]]:
        """What a subscriber that keeps ids has."""
        kept = {payload["message_id"]: (topic, payload) for topic, payload, _ in self.messages}
        return list(kept.values())

    def serve(self, connection: socket.socket) -> None:
        lose_after = self.lose_after.pop(0) if self.lose_after else None
        self.connections += 1
        taken = 0
        with connection, connection.makefile("rb") as stream:
            while (packet := _read(stream)) is not None:
                kind, flags, body = packet
                if kind == CONNECT:
                    refused = self.user is not None and _credentials(body) != (self.user, self.password)
                    connection.sendall(bytes([CONNACK << 4, 2, 0, 5 if refused else 0]))
                    if refused:
                        return
                elif kind == PUBLISH:
                    topic, rest = _text(body)
                    self.messages.append((topic, json.loads(rest[2:]), bool(flags & 1)))
                    taken += 1
                    if lose_after is not None and taken >= lose_after:
                        return  # taken, but the sender does not learn of it
                    if lose_after is None:
                        connection.sendall(bytes([PUBACK << 4, 2]) + rest[:2])
                elif kind == PINGREQ:
                    connection.sendall(bytes([PINGRESP << 4, 0]))
                elif kind == DISCONNECT:
                    return


def _read(stream: Any) -> tuple[int, int, bytes] | None:
    head = stream.read(1)
    if not head:
        return None
    length = shift = 0
    while True:
        [byte] = stream.read(1)
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return head[0] >> 4, head[0] & 15, stream.read(length)


def _text(body: bytes) -> tuple[str, bytes]:
    (size,) = struct.unpack(">H", body[:2])
    return body[2 : 2 + size].decode(), body[2 + size :]


def _credentials(body: bytes) -> tuple[str | None, str | None]:
    flags = body[7]
    _, rest = _text(body[10:])
    user = password = None
    if flags & 0x80:
        user, rest = _text(rest)
    if flags & 0x40:
        password, rest = _text(rest)
    return user, password


@contextmanager
def broker(**how: Any) -> Iterator[Broker]:
    """Run a broker."""
    one = Broker(**how)
    server = socket.create_server(("127.0.0.1", 0))
    one.url = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=one.serve, args=(connection,), daemon=True))
            threads[-1].start()

    listening = threading.Thread(target=accept, daemon=True)
    listening.start()
    try:
        yield one
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        listening.join()
