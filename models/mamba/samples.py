"""What an update of fine-tuning is shown: key frames in shuffled passes, each with references of its own video.

Every draw is a function of (seed, number of the sample), so nothing of it is to be kept over a stop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.extras import optional
from models.mamba.frames import FrameStore

cv2 = optional("cv2")

__all__ = ["Drawn", "Sampler"]

_REFERENCE_RANGE = 1000  # frames before and after the key
_FLIP = 0.5
_ZOOM, _SHIFT = (0.75, 1.3), 0.3  # of a side
_SEEN = 0.4  # of an object that must be left in the picture
_BRIGHTNESS, _CONTRAST = 0.15, (0.75, 1.25)
_TRIES = 10
_SHUFFLE = 0.5
_MARGIN = 0.08  # around a box, of its sides, so that the edge of an object comes along


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
            flipped, boxes_G4 = _flipped(images[0], boxes_G4)
            images = [flipped, *(np.ascontiguousarray(image[:, ::-1]) for image in images[1:])]
        return Drawn(images[0], images[1:], boxes_G4, labels_G)

    def draw_views(self, number: int, views: int) -> list[Drawn]:
        """Return ``views`` looks at annotated frames of one video, in order of time: the ``number``-th clip of the run.

        Each is zoomed, shifted and lit by draws of its own, and its objects change places half of the time: so few boxes teach
        more places, sizes and neighbors than they have.
        References are not read: the frames are each other's past.
        """
        rng = np.random.default_rng([self.seed, 3, number])
        videos = self.store.videos
        first = self._key(number)
        alike = (videos.video_I[self.keys] == videos.video_I[first]) & (videos.size_I2[self.keys] == videos.size_I2[first]).all(
            1
        )
        flip = rng.random() < _FLIP
        drawn = []
        for i in np.sort(rng.choice(self.keys[alike], views)).tolist():
            image, (boxes_G4, labels_G) = self.store.read(i), videos.objects(i)
            if flip:
                image, boxes_G4 = _flipped(image, boxes_G4)
            if rng.random() < _SHUFFLE:
                image = image.copy()
                labels_G = labels_G[_shuffle(image, boxes_G4, rng)]
            image, boxes_G4, kept_G = _view(image, boxes_G4, rng)
            drawn.append(Drawn(image, [], boxes_G4, labels_G[kept_G]))
        return drawn

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


def _flipped(image: NDArray[np.uint8], boxes_G4: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return a picture and its boxes, left for right."""
    boxes_G4 = boxes_G4.copy()
    boxes_G4[:, [0, 2]] = image.shape[1] - boxes_G4[:, [2, 0]]
    return np.ascontiguousarray(image[:, ::-1]), boxes_G4


def _shuffle(image: NDArray[np.uint8], boxes_G4: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """Put the objects of a picture in each other's boxes, in place; return which object each box holds now."""
    height, width = image.shape[:2]
    order_G = rng.permutation(len(boxes_G4))
    margin_G4 = np.tile(boxes_G4[:, 2:] - boxes_G4[:, :2], 2) * np.array([-1, -1, 1, 1]) * _MARGIN
    wide_G4 = np.clip(np.rint(boxes_G4 + margin_G4), 0, [width, height, width, height]).astype(int)
    pieces = [image[y1:y2, x1:x2].astype(np.float32) for x1, y1, x2, y2 in wide_G4.tolist()]
    for place, (x1, y1, x2, y2) in enumerate(wide_G4.tolist()):
        piece = cv2.resize(pieces[order_G[place]], (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA)
        y, x = np.mgrid[-1 : 1 : (y2 - y1) * 1j, -1 : 1 : (x2 - x1) * 1j]
        cover = np.clip((1.0 - np.maximum(np.abs(x), np.abs(y))) / _MARGIN, 0, 1)[..., None].astype(np.float32)
        image[y1:y2, x1:x2] = piece * cover + image[y1:y2, x1:x2] * (1 - cover)
    return order_G


def _view(
    image: NDArray[np.uint8], boxes_G4: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_]]:
    """Return a picture zoomed, shifted and lit otherwise, its boxes cut to it, and which objects can still be seen."""
    height, width = image.shape[:2]
    sides = np.array([width, height, width, height], np.float32)
    for _ in range(_TRIES):
        zoom = float(np.exp(rng.uniform(*np.log(_ZOOM))))
        shift_2 = rng.uniform(-_SHIFT, _SHIFT, 2) * (width, height) + (1 - zoom) / 2 * np.array([width, height])
        moved_G4 = boxes_G4 * zoom + np.tile(shift_2, 2).astype(np.float32)
        cut_G4 = np.clip(moved_G4, 0, sides).astype(np.float32)
        kept_G = (cut_G4[:, 2:] - cut_G4[:, :2]).prod(1) > _SEEN * (moved_G4[:, 2:] - moved_G4[:, :2]).prod(1)
        if kept_G.any():
            break
    else:
        return image, boxes_G4, np.ones(len(boxes_G4), np.bool_)
    contrast, light = rng.uniform(*_CONTRAST), 255 * rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    matrix = np.array([[zoom, 0, shift_2[0]], [0, zoom, shift_2[1]]], np.float32)
    moved = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    view: NDArray[np.uint8] = np.clip((moved - 128) * contrast + 128 + light, 0, 255).astype(np.uint8)
    return view, cut_G4[kept_G], kept_G
