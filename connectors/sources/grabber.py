"""A thread that keeps one camera open: grabs frames as they come, says when it is lost, and connects again.

Knows nothing of Arrow or of the pipeline. Invariant: the thread never waits for whoever takes the frames; what is not taken in
time is replaced by what is newer.
"""

# H height, W width

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from connectors.extras import optional
from connectors.sources.camera_list import masked
from connectors.sources.frames import Bytes

cv2 = optional("cv2")

__all__ = ["Capture", "Connect", "Grabbed", "Grabber", "Lost", "Timing", "connect"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, but ``max_fps``."""

    open_timeout_s: float
    read_timeout_s: float
    reconnect_s: float
    """Before the first new try; doubles with each one that fails."""
    reconnect_max_s: float
    max_fps: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Grabbed:
    """A frame. ``number`` counts the frames that were not left out for ``max_fps``; a gap in it are frames that gave way."""

    image: Bytes | None
    """BGR [H, W, 3]; None if it cannot be decoded."""
    time_us: int
    """Wall clock at the grab, UTC."""
    number: int
    segment: int
    """Counts connections and sizes: within a segment frames follow each other in one size."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The camera is gone."""

    time_us: int
    reason: str


Event = Grabbed | Lost


class Capture(Protocol):
    """An open camera: what is used of ``cv2.VideoCapture``. Images are pixels, or tensors where frames stay on a device."""

    def grab(self) -> bool:
        """Wait for the next frame; False when the camera is lost."""
        ...

    def retrieve(self) -> tuple[bool, Bytes | None]:
        """Decode the frame that was grabbed last."""
        ...

    def release(self) -> None:
        """Let the camera go."""
        ...


Connect = Callable[[str | int, Timing], Capture | None]
"""Opens the camera at an address; None if it cannot be opened. Raises ``LookupError`` that says why it cannot be used."""


class Grabber:
    """One camera. ``keep`` frames wait at most; the oldest is dropped.

    ``clock`` gives monotonic seconds and ``wall_clock`` those of the day; ``connect`` opens the camera.
    """

    def __init__(
        self,
        name: str,
        address: str | int,
        timing: Timing,
        *,
        keep: int,
        segment: int,
        connect: Connect,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.address = address
        self._connect = connect
        self._clock = clock
        self._wall_clock = wall_clock
        self._name = name
        self._timing = timing
        self._segment = segment
        self._keep = keep
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=2 * keep + 1)  # frames, and between two of them at most one loss
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)
        self._thread.start()

    @property
    def segment(self) -> int:
        """The number of the newest segment."""
        return self._segment

    def take(self) -> Event | None:
        """Return the oldest event that waits, or None."""
        with self._lock:
            return self._events.popleft() if self._events else None

    def stop(self) -> None:
        """Let the thread end; it does within the read timeout. May be called twice."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread after ``stop``; say whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _put(self, event: Event) -> None:
        with self._lock:
            frames = [waiting for waiting in self._events if isinstance(waiting, Grabbed)]
            if isinstance(event, Grabbed) and len(frames) >= self._keep:
                self._events.remove(frames[0])
            if self._events and isinstance(event, Lost) and isinstance(self._events[-1], Lost):
                self._events.pop()  # nothing in between: the newer reason counts
            self._events.append(event)

    def _run(self) -> None:
        failures = 0
        told = False
        while not self._stop.is_set():
            frames, reason = self._connection()
            if frames:
                failures, told = 0, False
            if self._stop.is_set():
                return
            if not told:
                told = True
                self._put(Lost(self._now_us(), reason))
                logger.warning("camera=%s lost: %s", self._name, reason)
            wait_s = min(self._timing.reconnect_max_s, self._timing.reconnect_s * 2.0 ** min(failures, 30))
            failures += 1
            self._stop.wait(wait_s * random.uniform(0.5, 1.0))  # cameras behind one switch should not come back in step

    def _connection(self) -> tuple[int, str]:
        """Open the camera and grab until it is lost; return how many frames there were, and why it ended."""
        try:
            capture = self._connect(self.address, self._timing)
        except LookupError as error:
            return 0, f"{masked(self.address)}: {error}"
        frames = 0
        try:
            if capture is None:
                return 0, f"{masked(self.address)} cannot be opened"
            shape: tuple[int, ...] | None = None
            next_s = -float("inf")
            while not self._stop.is_set():
                if not capture.grab():
                    return (
                        frames,
                        f"no frame from {masked(self.address)} within {self._timing.read_timeout_s:g} s, or it has ended",
                    )
                time_us, now_s = self._now_us(), self._clock()
                frames += 1
                if self._timing.max_fps is not None:
                    if now_s < next_s:
                        continue
                    period_s = 1 / self._timing.max_fps
                    next_s = now_s + period_s if frames == 1 else max(next_s + period_s, now_s - period_s)
                image = _retrieve(capture)
                if image is not None and image.shape != shape:
                    shape = image.shape
                    self._segment += 1
                    if frames == 1:
                        logger.info("camera=%s connected, %d x %d px", self._name, shape[1], shape[0])
                self._number += 1
                self._put(Grabbed(image, time_us, self._number, self._segment))
            return frames, "stopped"
        finally:
            if capture is not None:
                capture.release()

    def _now_us(self) -> int:
        return round(self._wall_clock() * 1e6)


def connect(address: str | int, timing: Timing) -> Capture | None:
    """Open a device by its number or path, anything else by FFmpeg; None if it cannot be opened."""
    address = int(address) if str(address).isdecimal() else address
    if isinstance(address, int) or address.startswith("/dev/"):
        capture = cv2.VideoCapture(address)
    else:
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(timing.open_timeout_s * 1000)]
        timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(timing.read_timeout_s * 1000)]
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, [*timeouts, cv2.CAP_PROP_N_THREADS, 1])
    if capture.isOpened():
        opened: Capture = capture
        return opened
    capture.release()
    return None


def _retrieve(capture: Capture) -> Bytes | None:
    try:
        ok, image = capture.retrieve()
    except cv2.error:
        return None
    return image if ok and image is not None and image.size else None
