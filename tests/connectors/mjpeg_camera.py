"""A camera for tests: MJPEG over HTTP on loopback, that can stall, die, come back and change its size."""

from __future__ import annotations

import http.server
import socket
import threading
import time

import cv2
import numpy as np
from ports import free_ports


class MjpegCamera:
    """Sends frames whose mean brightness counts up, so that a test can tell them apart."""

    def __init__(self, *, fps: float = 50.0, size: tuple[int, int] = (48, 64)) -> None:
        self.fps = fps
        self.size = size
        self.stalled = threading.Event()
        self.connections = 0
        (self._port,) = free_ports()
        self._server: http.server.ThreadingHTTPServer | None = None
        self._sockets: set[socket.socket] = set()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/camera.mjpg"

    def start(self) -> None:
        """Listen, on the port of before if there was one."""
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._serve(self, server)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that go

        server = self._server = Server(("127.0.0.1", self._port), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def die(self) -> None:
        """Close everything at once."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        for client in list(self._sockets):
            client.close()

    def _serve(self, handler: http.server.BaseHTTPRequestHandler, server: http.server.HTTPServer) -> None:
        self.connections += 1
        self._sockets.add(handler.connection)
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        number = 0
        try:
            while self._server is server:
                if not self.stalled.is_set():
                    height, width = self.size
                    image = np.full((height, width, 3), number % 200, np.uint8)
                    data = cv2.imencode(".jpg", image)[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                    handler.wfile.write(head + data + b"\r\n")
                    number += 1
                time.sleep(1 / self.fps)
        except (OSError, ValueError):
            pass
        finally:
            self._sockets.discard(handler.connection)
