"""What ``fourd_vla`` knows of a stream besides its bank, and when a frame does not go on from the last one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from operators.fourd_vla.frames import RgbdImage
from operators.streams import Stream

__all__ = ["FourDVLAStream"]

_NO_EPISODE = 0


@dataclass(slots=True)
class FourDVLAStream(Stream):
    """One stream. All fields are plain, so that they are part of snapshots."""

    episode: int = _NO_EPISODE
    """A hash of the column ``episode``."""
    height: int = 0
    width: int = 0
    fx: float = 0.0
    fy: float = 0.0
    cx: float = 0.0
    cy: float = 0.0
    has_frames: bool = False
    in_world: bool = False
    """The stream's frames have poses."""

    def begins_episode(self, image: RgbdImage) -> str | None:
        """Say why an episode begins with this frame, None if it does not."""
        if image.resets:
            return "the row's column reset is true"
        if self.has_frames and episode_number(image.episode) != self.episode:
            return f"episode {image.episode!r} begins"
        return None

    def camera_change(self, image: RgbdImage) -> str | None:
        """Say how size or camera matrix differ from the last frame's, None if they do not."""
        if not self.has_frames:
            return None
        if (image.height, image.width) != (self.height, self.width):
            return f"frames were {self.width}x{self.height} px, this one is {image.width}x{image.height}"
        was = (self.fx, self.fy, self.cx, self.cy)
        if image.camera is not None and image.camera != was:
            return f"the camera was fx, fy, cx, cy = {was}, now it is {image.camera}"
        return None

    def note(self, image: RgbdImage) -> None:
        """Remember what the next frame is compared with."""
        self.episode = episode_number(image.episode)
        self.height, self.width = image.height, image.width
        if image.camera is not None:
            self.fx, self.fy, self.cx, self.cy = image.camera
        self.has_frames, self.in_world = True, image.pose_16 is not None


def episode_number(episode: str | None) -> int:
    """Return a number for an episode's name, the same everywhere."""
    if episode is None:
        return _NO_EPISODE
    return int.from_bytes(hashlib.blake2b(episode.encode(), digest_size=7).digest(), "big") + 1
