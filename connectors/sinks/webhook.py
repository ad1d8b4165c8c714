"""Sink: rows as JSON to a URL, once their epoch is committed.

A file is posted in parts of ``batch_rows``. A part has the same ``Idempotency-Key`` however often it is sent: repeats do no
harm to a receiver that keeps the keys.
"""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, ClassVar

from connectors.errors import ConfigError, SinkError
from connectors.options import REQUIRED, option
from connectors.sinks.delivered import DeliveringOptions, DeliveringSink

__all__ = ["WebhookOptions", "WebhookSink"]

_PART_BYTES = 1 << 20
_BUSY = (408, 425, 429)
"""Statuses below 500 that ask for another try."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookOptions(DeliveringOptions):
    """Options of the sink ``webhook``."""

    url: str = option(REQUIRED, "Where rows are posted to, http or https; what is secret in it belongs into `token`.")
    token: str | None = option(None, "Sent as 'Authorization: Bearer <token>'.", secret=True)
    batch_rows: int = option(100, "Rows of one request at most.", unit="rows", ge=1, le=100_000)

    def __post_init__(self) -> None:
        DeliveringOptions.__post_init__(self)
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("url: must be an address such as https://example.org/hook")
        if parts.username or parts.password:
            raise ConfigError("url: must not hold a user or password; give a token")


class WebhookSink(DeliveringSink):
    """Posts JSON arrays of rows. Values are written as by the sink ``jsonl``."""

    Options: ClassVar[type] = WebhookOptions
    kind = "webhook"
    options: WebhookOptions  # type: ignore[assignment]

    def __init__(self, options: WebhookOptions) -> None:
        super().__init__(options)  # type: ignore[arg-type]
        self._opener = urllib.request.build_opener(_NoRedirect)

    def deliver(self, path: Path, identity: str) -> None:
        """Post the file in parts."""
        with path.open("rb") as lines:
            for number, body in enumerate(_parts(lines, self.options.batch_rows)):
                self._post(body, f"{identity}-{number}")

    def _post(self, body: bytes, key: str) -> None:
        headers = {"Content-Type": "application/json", "Idempotency-Key": key, "User-Agent": "streambank"}
        if self.options.token is not None:
            headers["Authorization"] = f"Bearer {self.options.token}"
        request = urllib.request.Request(self.options.url, data=body, headers=headers, method="POST")
        self.until_taken(lambda: self._problem(request), self.options.retry_s)

    def _problem(self, request: urllib.request.Request) -> str | None:
        """Send; return None where it was taken, what is wrong where it may be taken later. Raise ``SinkError`` otherwise."""
        try:
            with self._opener.open(request, timeout=self.options.timeout_s) as answer:
                answer.read()
            return None
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(200).decode(errors="replace").strip()
            problem = f"answers {error.code} {error.reason}" + (f" ({said})" if said else "")
            if error.code >= 500 or error.code in _BUSY:
                return problem
            then = "correct url or token, then run again with --resume"
            raise SinkError(f"{self.address()}: {problem}. {self.held(then)}") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            return f"cannot be reached ({reason or type(error).__name__})"

    def address(self) -> str:
        """Return the URL without its query, in which there may be secrets."""
        parts = urllib.parse.urlsplit(self.options.url)
        return urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Does not follow: a redirected POST would become a GET without rows."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def _parts(lines: IO[bytes], rows: int) -> Iterator[bytes]:
    """Yield JSON arrays of at most so many of the lines and about a megabyte."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        text = line.rstrip(b"\n")
        if held and (len(held) == rows or size + len(text) > _PART_BYTES):
            yield b"[" + b",".join(held) + b"]"
            held, size = [], 0
        held.append(text)
        size += len(text)
    if held:
        yield b"[" + b",".join(held) + b"]"
