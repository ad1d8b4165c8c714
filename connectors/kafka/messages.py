"""The three message formats that source and sink agree on, and the words in their headers.

* ``json``: one JSON object per message.
* ``arrow``: one Arrow IPC stream per message, of any number of rows.
* ``frame``: one encoded image per message, its size and time in headers.

The key of a message is the stream; an empty message ends it.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["CONTENT_TYPE", "MEDIA_TYPES", "SCHEMA", "MessageFormat", "content_type", "encoding_of"]

MessageFormat = Literal["json", "arrow", "frame"]

CONTENT_TYPE = "ct"
SCHEMA = "schema"

MEDIA_TYPES = {"json": b"application/json", "arrow": b"application/vnd.apache.arrow.stream"}
"""Format → value of the header ``ct``; frames have the type of their encoding."""

_IMAGES = {"jpeg": b"image/jpeg", "png": b"image/png"}
_RAW = "application/vnd.streambank."


def content_type(encoding: str) -> bytes:
    """Return the media type of an image: IANA's for JPEG and PNG, one of our own for raw pixels."""
    return _IMAGES.get(encoding) or f"{_RAW}{encoding}".encode()


def encoding_of(media_type: bytes) -> str | None:
    """Return the encoding that ``content_type`` was made from, None for a type that is no image."""
    for encoding, name in _IMAGES.items():
        if name == media_type:
            return encoding
    text = media_type.decode("ascii", "replace")
    return text.removeprefix(_RAW) if text.startswith(_RAW) else None
