"""What an update of fine-tuning is shown: key frames in shuffled passes, each with references of its own video.

Every draw is a function of (seed, number of the sample), so nothing of it is to be kept over a stop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.mamba.frames import FrameStore

__all__ = ["Drawn", "Sampler"]

_REFERENCE_RANGE = 1000  # frames before and after the key
_FLIP = 0.5


class Drawn(NamedTuple):
    """One sample: a key frame with its objects, and its references."""

    key: NDArray[np.uint8]
    references: list[NDArray[np.uint8]]
    boxes_G4: NDArray[np.float32]
    labels_G: NDArray[np.int64]


class Sampler:
    """Key frames in shuffled passes, each with one earlier and one later frame of its video, all flipped together or not.

    Frames without objects are references only, as published.
    """

    def __init__(self, store: FrameStore, seed: int) -> None:
        self.store = store
        self.seed = seed
        self.keys = np.flatnonzero(np.diff(store.videos.first_I))
        self._order: tuple[int, NDArray[np.int64]] = (-1, self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def draw(self, number: int) -> Drawn:
        """Return the ``number``-th sample of the run (0-based)."""
        rng = np.random.default_rng([self.seed, 1, number])
        i = self._key(number)
        references = self._references(i, rng)
        flip = rng.random() < _FLIP
        boxes_G4, labels_G = self.store.videos.objects(i)
        images = [self.store.read(j) for j in (i, *references)]
        if flip:
            images = [np.ascontiguousarray(image[:, ::-1]) for image in images]
            boxes_G4 = boxes_G4.copy()
            boxes_G4[:, [0, 2]] = images[0].shape[1] - boxes_G4[:, [2, 0]]
        return Drawn(images[0], images[1:], boxes_G4, labels_G)

    def _key(self, number: int) -> int:
        epoch, place = divmod(number, len(self.keys))
        order = self._order  # a local name: threads of neighboring epochs replace the attribute under each other
        if order[0] != epoch:
            order = self._order = (epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(self.keys))
        return int(order[1][place])

    def _references(self, i: int, rng: np.random.Generator) -> list[int]:
        videos = self.store.videos
        own = np.array(videos.frames_of(int(videos.video_I[i])))
        distance = videos.frame_I[own] - videos.frame_I[i]
        # Frames of another size could not be stacked; a recording that changes its size is in effect two videos.
        usable = (np.abs(distance) <= _REFERENCE_RANGE) & (videos.size_I2[own] == videos.size_I2[i]).all(axis=1)
        sides = [own[usable & (distance < 0)], own[usable & (distance > 0)]]
        drawn = [int(rng.choice(side)) if len(side) else None for side in sides]
        # A side without frames repeats the other; a still image is its own reference.
        fallback = next((j for j in drawn if j is not None), i)
        return [fallback if j is None else j for j in drawn]
