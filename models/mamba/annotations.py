"""Reads annotations of videos and pictures: CocoVID (videos, images with ``video_id`` and ``frame_id``, boxes, categories), and
by way of :mod:`models.mamba.annotation_files` plain COCO, YOLO and CSV.

Everything that is wrong with a file is reported at once, in words that name the entry. Knows nothing about training; pictures
are read by :mod:`models.mamba.frames`.
"""

# V videos, I images (frames), N objects of all images, G objects of one image

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from connectors.errors import ConfigError, nearest
from models.mamba.annotation_files import read_document

__all__ = ["AnnotatedVideos", "read_annotations"]

logger = logging.getLogger(__name__)

_MOST_SHOWN = 30


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedVideos:
    """Frames in order of video and frame number, and their objects in the order of the frames."""

    classes: tuple[str, ...]
    video_names: tuple[str, ...]
    video_files: tuple[Path | None, ...]
    """Where frames have no picture of their own: the video they are decoded from."""
    picture_I: tuple[Path | None, ...]
    """The frame's picture; None: frame ``frame_I`` of its video file."""
    video_I: NDArray[np.int64]
    """Position in ``video_names``."""
    frame_I: NDArray[np.int64]
    size_I2: NDArray[np.int64]
    """(h, w) px."""
    first_I: NDArray[np.int64]
    """[I + 1]: objects of frame i are ``first_I[i]`` to ``first_I[i + 1]``."""
    boxes_N4: NDArray[np.float32]
    """x1, y1, x2, y2 px, inside the frame."""
    labels_N: NDArray[np.int64]
    tracks_N: NDArray[np.int64]
    """``instance_id`` within the video; -1 where the file has none."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frame_I)

    def objects(self, i: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return boxes [G, 4] and labels [G] of frame ``i``."""
        here = slice(int(self.first_I[i]), int(self.first_I[i + 1]))
        return self.boxes_N4[here], self.labels_N[here]

    def frames_of(self, video: int) -> range:
        """Return the positions of a video's frames, in order."""
        return range(int(np.searchsorted(self.video_I, video)), int(np.searchsorted(self.video_I, video, side="right")))

    def with_classes(self, classes: Sequence[str]) -> AnnotatedVideos:
        """Return the same objects with labels that count in ``classes``. Raises ``ConfigError`` for a class not among them."""
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise ConfigError(
                f"categories {unknown} are not among the classes {list(classes)}; use the same categories in both files"
            )
        position = np.array([list(classes).index(name) for name in self.classes], dtype=np.int64)
        return AnnotatedVideos(
            tuple(classes),
            self.video_names,
            self.video_files,
            self.picture_I,
            self.video_I,
            self.frame_I,
            self.size_I2,
            self.first_I,
            self.boxes_N4,
            position[self.labels_N],
            self.tracks_N,
        )


def read_annotations(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None, *, only: Sequence[str] | None = None
) -> AnnotatedVideos:
    """Read annotations. ``images`` is the folder that ``file_name`` counts from (default: the file's own folder).

    ``only``: the classes to keep, in the order of their labels; boxes of others are left out.

    An image without ``file_name`` is frame ``frame_id`` (0-based) of its video's ``file_name``. ``bbox`` is x, y, width, height
    in px; a box that sticks out is cut to the frame. Crowd boxes (``iscrowd``) are left out. Raises ``ConfigError`` that lists
    all problems.
    """
    file = Path(path)
    folder = Path(images) if images is not None else file.parent
    document = read_document(file, folder)
    problems: list[str] = []
    if not folder.is_dir():
        problems.append(f"images: {folder} is not a folder; give the folder that file_name counts from")
    if only is not None:
        _keep(document, only, problems)
    categories = _index(document["categories"], "categories", problems)
    videos = _index(document["videos"], "videos", problems)
    pictures = _index(document["images"], "images", problems)
    classes = _classes(categories, problems)
    _check_images(pictures, videos, folder, problems)
    boxes = _boxes(document["annotations"], pictures, categories, problems)
    if not problems and not boxes:
        problems.append("annotations: there is no box to learn from")
    if problems:
        shown = "\n  ".join(problems[:_MOST_SHOWN])
        rest = f"\n  … and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
        raise ConfigError(f"{file}: {len(problems)} problem(s) in the annotations:\n  {shown}{rest}")
    return _arrange(classes, categories, videos, pictures, boxes, folder)


def _keep(document: dict[str, list[Any]], only: Sequence[str], problems: list[str]) -> None:
    """Leave the categories ``only``, numbered in this order, and their boxes; images stay."""
    entries = [entry for entry in document["categories"] if isinstance(entry, dict)]
    ids = {entry["name"]: entry.get("id") for entry in entries if isinstance(entry.get("name"), str)}
    for name in only:
        if name not in ids:
            problems.append(f"classes: {name!r} is not a category{nearest(name, ids)}; there are: {', '.join(ids)}")
    number = {ids[name]: n for n, name in enumerate(only, start=1) if name in ids and _is_int(ids[name])}
    others = {key for key in ids.values() if _is_int(key)} - number.keys()
    document["categories"] = [{"id": n, "name": name} for n, name in enumerate(only, start=1)]
    kept = []
    for entry in document["annotations"]:  # what is no category at all is reported later
        category = entry.get("category_id") if isinstance(entry, dict) else None
        if not _is_int(category):
            kept.append(entry)
        elif category not in others:
            kept.append({**entry, "category_id": number.get(category, category)})
    document["annotations"] = kept


def _index(entries: list[Any], table: str, problems: list[str]) -> dict[int, dict[str, Any]]:
    """Return the entries by id, leaving out what has no usable id."""
    by_id: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_int(entry.get("id")):
            problems.append(f"{table}[{position}]: needs an integer 'id'")
        elif entry["id"] in by_id:
            problems.append(f"{table}[{position}]: id {entry['id']} is there twice")
        else:
            by_id[entry["id"]] = entry
    return by_id


def _classes(categories: dict[int, dict[str, Any]], problems: list[str]) -> tuple[str, ...]:
    names = []
    for key in sorted(categories):
        name = categories[key].get("name")
        if not isinstance(name, str) or not name:
            problems.append(f"category {key}: needs a 'name'")
        elif name in names:
            problems.append(f"category {key}: name {name!r} is there twice")
        else:
            names.append(name)
    if not categories:
        problems.append("categories: at least one is needed")
    return tuple(names)


def _check_images(
    pictures: dict[int, dict[str, Any]], videos: dict[int, dict[str, Any]], folder: Path, problems: list[str]
) -> None:
    seen: dict[tuple[int, int], int] = {}
    missing_videos: set[int] = set()
    for key, picture in pictures.items():
        where = f"image {key}"
        video_id: Any = picture.get("video_id")
        frame: Any = picture.get("frame_id")
        if video_id is None:
            problems.append(f"{where}: has no video_id; give the id of its video (a still image is a video of one frame)")
            continue
        if video_id not in videos:
            problems.append(f"{where}: video_id {video_id} is not in 'videos'")
            continue
        if not _is_int(frame) or frame < 0:
            problems.append(f"{where}: frame_id is {frame!r}; give the frame's number in its video, 0 or more")
        elif (video_id, frame) in seen:
            problems.append(f"{where}: is frame {frame} of video {video_id}, and so is image {seen[video_id, frame]}")
        else:
            seen[video_id, frame] = key
        if not all(_is_int(picture.get(side)) and picture[side] > 0 for side in ("height", "width")):
            problems.append(
                f"{where}: height {picture.get('height')!r}, width {picture.get('width')!r}; give both in whole px above 0"
            )
        name, video_name = picture.get("file_name"), videos[video_id].get("file_name")
        if isinstance(name, str):
            if not (folder / name).is_file():
                problems.append(f"{where}: {folder / name} does not exist")
        elif not isinstance(video_name, str):
            problems.append(f"{where}: has no file_name, and neither has its video {video_id}; one of the two must name a file")
        elif video_id not in missing_videos and not (folder / video_name).is_file():
            missing_videos.add(video_id)
            problems.append(f"video {video_id}: {folder / video_name} does not exist")


@dataclass(slots=True)
class _Box:
    image: int
    xyxy: tuple[float, float, float, float]
    category: int
    track: int


def _boxes(
    entries: list[Any], pictures: dict[int, dict[str, Any]], categories: dict[int, dict[str, Any]], problems: list[str]
) -> list[_Box]:
    boxes = []
    crowd = cut = 0
    for position, entry in enumerate(entries):
        where = f"annotation {entry.get('id', f'at {position}')}" if isinstance(entry, dict) else f"annotations[{position}]"
        before = len(problems)
        entry = entry if isinstance(entry, dict) else {}
        image: Any = entry.get("image_id")
        category: Any = entry.get("category_id")
        bbox: Any = entry.get("bbox")
        if image not in pictures:
            problems.append(f"{where}: image_id {image!r} is not in 'images'")
        if category not in categories:
            known = {str(key) for key in categories}
            problems.append(f"{where}: category_id {category!r} is not in 'categories'{nearest(str(category), known)}")
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
            problems.append(f"{where}: bbox is {bbox!r}; four finite numbers are needed: x, y, width, height in px")
        elif bbox[2] <= 0 or bbox[3] <= 0:
            problems.append(f"{where}: bbox {bbox} has no area; width and height must be above 0 (x, y, width, height)")
        if len(problems) > before:
            continue
        if entry.get("iscrowd"):
            crowd += 1
            continue
        x, y, w, h = (float(value) for value in entry["bbox"])
        height: Any = pictures[image].get("height")
        width: Any = pictures[image].get("width")
        if not _is_int(height) or not _is_int(width):
            continue  # reported with the image
        inside = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            problems.append(f"{where}: bbox {bbox} lies outside image {image}, which is {width} px wide and {height} px high")
            continue
        cut += inside != (x, y, x + w, y + h)
        track: Any = entry.get("instance_id", entry.get("track_id", -1))
        boxes.append(_Box(image, inside, category, track if _is_int(track) else -1))
    if crowd or cut:
        logger.warning("annotations crowd_boxes_left_out=%d boxes_cut_to_the_frame=%d", crowd, cut)
    return boxes


def _arrange(
    classes: tuple[str, ...],
    categories: dict[int, dict[str, Any]],
    videos: dict[int, dict[str, Any]],
    pictures: dict[int, dict[str, Any]],
    boxes: list[_Box],
    folder: Path,
) -> AnnotatedVideos:
    video_ids = sorted(videos)
    place_of_video = {key: place for place, key in enumerate(video_ids)}
    order = sorted(pictures, key=lambda key: (place_of_video[pictures[key]["video_id"]], pictures[key]["frame_id"]))
    place_of_image = {key: place for place, key in enumerate(order)}
    label_of = {key: label for label, key in enumerate(sorted(categories))}
    image_N = np.array([place_of_image[box.image] for box in boxes], dtype=np.int64)
    by_image = np.argsort(image_N, kind="stable")

    def file_of(entry: dict[str, Any]) -> Path | None:
        return folder / entry["file_name"] if isinstance(entry.get("file_name"), str) else None

    return AnnotatedVideos(
        classes=classes,
        video_names=tuple(str(videos[key].get("name", key)) for key in video_ids),
        video_files=tuple(file_of(videos[key]) for key in video_ids),
        picture_I=tuple(file_of(pictures[key]) for key in order),
        video_I=np.array([place_of_video[pictures[key]["video_id"]] for key in order], dtype=np.int64),
        frame_I=np.array([pictures[key]["frame_id"] for key in order], dtype=np.int64),
        size_I2=np.array([(pictures[key]["height"], pictures[key]["width"]) for key in order], dtype=np.int64),
        first_I=np.searchsorted(image_N[by_image], np.arange(len(order) + 1)),
        boxes_N4=np.array([box.xyxy for box in boxes], dtype=np.float32)[by_image],
        labels_N=np.array([label_of[box.category] for box in boxes], dtype=np.int64)[by_image],
        tracks_N=np.array([box.track for box in boxes], dtype=np.int64)[by_image],
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
