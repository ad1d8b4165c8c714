"""A hub of weights on this machine: what huggingface_hub asks of it, for repositories that are folders."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["COMMIT", "hub"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_INFO = re.compile(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([^?]+))?")
_TREE = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/tree/([^?]+)")
_FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")

Repositories = Mapping[str, Mapping[str, bytes]]
"""ORG/NAME → name of a file → content."""


@contextmanager
def hub(repositories: Repositories, revisions: tuple[str, ...] = ("main", "v1", COMMIT)) -> Iterator[tuple[str, list[str]]]:
    """Serve ``repositories`` while the context is open; yield the address and the requests so far."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            requests.append(f"{self.command} {path}")
            if match := _TREE.fullmatch(path):
                if not self.refused(match[1], match[2]):
                    entries = [
                        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in repositories[match[1]].items()
                    ]
                    self.say(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
            elif match := _INFO.fullmatch(path):
                if not self.refused(match[1], match[2] or "main"):
                    names = [{"rfilename": name} for name in repositories[match[1]]]
                    info = {"id": match[1], "modelId": match[1], "sha": COMMIT, "siblings": names, "private": False, "tags": []}
                    self.say(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif match := _FILE.fullmatch(path):
                if not self.refused(match[1], match[2]):
                    content = repositories[match[1]].get(match[3])
                    if content is None:
                        self.say(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                    else:
                        self.say(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
            else:
                self.say(404, b"", {})

        def refused(self, repository: str, revision: str) -> bool:
            if repository not in repositories:
                self.say(404, b"", {"X-Error-Code": "RepoNotFound"})
                return True
            if revision not in revisions:
                self.say(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return True
            return False

        def say(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
