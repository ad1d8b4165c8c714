"""Pictures of annotated videos, by frame number. Frames of a video file are decoded once, in order, into a folder of PNGs.

Video files are never seeked: a seek in OpenCV may land on another frame, and a box on the wrong frame teaches the wrong thing.
"""

# H rows, W columns

from __future__ import annotations

import logging
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from connectors.errors import ConfigError
from connectors.extras import optional
from models.mamba.annotations import AnnotatedVideos

cv2 = optional("cv2")

__all__ = ["FrameStore"]

logger = logging.getLogger(__name__)


class FrameStore:
    """Reads the frames of ``videos``; ``cache`` is where frames of video files go (kept between runs)."""

    def __init__(self, videos: AnnotatedVideos, cache: Path) -> None:
        self.videos = videos
        self._folders = [None if file is None else cache / _identity(file) for file in videos.video_files]

    def extract(self) -> None:
        """Decode the annotated frames of all video files that are not in the cache yet.

        Raises ``ConfigError`` that lists the videos that end too early or have another size.
        """
        problems = []
        for video, file in enumerate(self.videos.video_files):
            wanted = {int(self.videos.frame_I[i]): i for i in self.videos.frames_of(video) if self.videos.picture_I[i] is None}
            missing = {frame: i for frame, i in wanted.items() if not self._cached(i).is_file()}
            if not missing or file is None:
                continue
            logger.info("video=%s extracting_frames=%d", file, len(missing))
            problem = self._decode(file, missing)
            if problem:
                problems.append(problem)
        if problems:
            raise ConfigError("videos do not fit their annotations:\n  " + "\n  ".join(problems))

    def read(self, i: int) -> NDArray[np.uint8]:
        """Return frame ``i`` as [H, W, 3] RGB, 0–255. Raises ``ConfigError`` if it cannot be decoded or has another size."""
        path = self.videos.picture_I[i] or self._cached(i)
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)  # turned as EXIF says, as the operator does
        if image is None:
            raise ConfigError(f"{path}: cannot be read as an image; replace it or remove its entry from 'images'")
        self._check_size(i, image, path)
        rgb: NDArray[np.uint8] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return rgb

    def _cached(self, i: int) -> Path:
        folder = self._folders[int(self.videos.video_I[i])]
        assert folder is not None, "read_annotations lets no frame pass that has neither picture nor video"
        return folder / f"{self.videos.frame_I[i]:08d}.png"

    def _check_size(self, i: int, image: NDArray[np.uint8], path: Path) -> None:
        if image.shape[:2] != tuple(self.videos.size_I2[i]):
            height, width = self.videos.size_I2[i]
            raise ConfigError(
                f"{path}: frame {self.videos.frame_I[i]} is {image.shape[1]}x{image.shape[0]} px, but 'images' says "
                f"{width}x{height}; boxes would not fit. Correct width and height"
            )

    def _decode(self, file: Path, missing: dict[int, int]) -> str | None:
        """Write the missing frames (number → position); return what was wrong."""
        capture = cv2.VideoCapture(str(file))
        try:
            if not capture.isOpened():
                return f"{file}: cannot be opened as a video"
            last = max(missing)
            for frame in range(last + 1):
                if not capture.grab():
                    return f"{file}: ends after {frame} frames, but frame {last} is annotated"
                if frame not in missing:
                    continue
                readable, image = capture.retrieve()
                if not readable:
                    return f"{file}: frame {frame} cannot be decoded"
                target = self._cached(missing[frame])
                self._check_size(missing[frame], image, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_suffix(".partial.png")
                cv2.imwrite(str(partial), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])  # fast
                partial.replace(target)
        except ConfigError as error:
            return str(error)
        finally:
            capture.release()
        return None


def _identity(file: Path) -> str:
    """Return a folder name that another file, or the same one after a change, does not get."""
    about = file.stat()
    return f"{file.stem}-{zlib.crc32(f'{file.resolve()} {about.st_size} {about.st_mtime_ns}'.encode()):08x}"
