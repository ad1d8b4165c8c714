"""Which cameras there are: from the options, and from a file that may change while a pipeline runs."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import yaml

from connectors.errors import SourceError

__all__ = ["CameraList", "camera_problem", "masked"]

_SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtp", "udp", "tcp", "srt")
_LOOK_S = 1.0
"""How often the file is looked at, at most."""


def camera_problem(address: object) -> str | None:
    """Say what is wrong with the address of a camera, None if nothing is."""
    if isinstance(address, int) and not isinstance(address, bool) and address >= 0:
        return None
    if not isinstance(address, str) or not address:
        return f"{address!r} is no address; write a URL such as rtsp://host/path, or the number of a device"
    if address.isdecimal() or address.startswith("/dev/"):
        return None
    scheme = urlsplit(address).scheme
    if scheme in _SCHEMES:
        return None
    if scheme:
        return f"{masked(address)!r}: scheme {scheme!r} is not known; allowed: {', '.join(_SCHEMES)}"
    return f"{address!r} is neither a URL nor a device; for a recorded file use a source of type video"


def masked(address: str | int) -> str:
    """Return an address as it may be shown: without user and password."""
    return re.sub(r"(?<=://)[^/@]*@", "***@", str(address))


class CameraList:
    """Cameras by stream id. Used by readers in several threads.

    ``user`` and ``password`` go into URLs that bring none. While the file cannot be read, the last list that could stays valid.
    """

    def __init__(
        self,
        cameras: Mapping[str, str | int],
        path: Path | None,
        user: str | None,
        password: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.problem: str | None = None
        """Why the newest state of the file is not in use."""
        self._own = dict(cameras)
        self._path = path
        self._user = user
        self._password = password
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._looked_s = -math.inf
        self._listed: dict[str, str | int] = {}

    def addresses(self) -> dict[str, str | int]:
        """Return stream id → address with credentials; as of a second ago at most."""
        with self._lock:
            now = self._clock()
            if self._path is not None and now - self._looked_s >= _LOOK_S:
                self._looked_s = now
                self._look(self._path)
            merged = self._own | self._listed
        return {name: self._with_credentials(address) for name, address in merged.items()}

    def _look(self, path: Path) -> None:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            self._listed = _parse(path.read_text(encoding="utf-8"), path)
            self._stamp, self.problem = stamp, None
        except OSError as error:
            self.problem = f"cameras_file {str(path)!r} cannot be read: {error.strerror}"
        except SourceError as error:
            self.problem = str(error)

    def _with_credentials(self, address: str | int) -> str | int:
        if isinstance(address, int) or self._user is None:
            return address
        parts = urlsplit(address)
        if not parts.scheme or "@" in parts.netloc:
            return address
        credentials = quote(self._user, safe="") + (f":{quote(self._password, safe='')}" if self._password is not None else "")
        return urlunsplit(parts._replace(netloc=f"{credentials}@{parts.netloc}"))


def _parse(text: str, path: Path) -> dict[str, str | int]:
    where = f"cameras_file {str(path)!r}"
    try:
        found: Any = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(f"{where} is no YAML: {str(error).splitlines()[0]}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise SourceError(f"{where} must hold lines like 'gate: rtsp://host/path', not {type(found).__name__}")
    for name, address in found.items():
        problem = camera_problem(address)
        if problem is not None:
            raise SourceError(f"{where}, camera {name!r}: {problem}")
    return {str(name): address for name, address in found.items()}
