"""Annotations of other forms as one CocoVID document: plain COCO, YOLO, and tables of boxes (CSV).

Only the form is changed here; what the entries say is checked by :mod:`models.mamba.annotations`. An image without a video is
a video of one frame.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from connectors.errors import ConfigError
from connectors.extras import optional

cv2 = optional("cv2")

__all__ = ["TABLES", "read_document"]

TABLES = ("videos", "images", "annotations", "categories")
_CORNERS = ("x1", "y1", "x2", "y2")
_PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

Document = dict[str, list[Any]]


def read_document(file: Path, folder: Path) -> Document:
    """Return the tables of an annotation file; which form it has is told by its name.

    ``.json``: COCO, with videos or without. ``.csv``: a header and a box a line, ``file, frame, label, x1, y1, x2, y2`` (px;
    ``frame`` counts from 0 and may be left out for pictures). ``.yaml``, ``.yml``: YOLO, ``names`` and ``train``, labels in
    ``labels`` beside ``images``. Files count from ``folder``. Raises ``ConfigError`` for a file that cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix == ".csv":
        return _from_csv(file, folder)
    return _from_yolo(file, folder) if suffix in (".yaml", ".yml") else _from_json(file)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text: {error}") from error


# COCO


def _from_json(file: Path) -> Document:
    try:
        document = json.loads(_text(file))
    except ValueError as error:
        raise ConfigError(f"{file}: is not JSON: {error}; .csv and YOLO's .yaml are read too") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: holds a {type(document).__name__}; a COCO file is an object with {', '.join(TABLES)}")
    needed = TABLES if "videos" in document else TABLES[1:]
    wrong = [name for name in needed if not isinstance(document.get(name), list)]
    if wrong:
        raise ConfigError(f"{file}: {', '.join(wrong)} missing or not a list; a COCO file has {', '.join(needed)}")
    if "videos" in document:
        return document
    pictures = [image for image in document["images"] if isinstance(image, dict)]
    if any("video_id" in image for image in pictures):
        raise ConfigError(f"{file}: videos missing, but its images have a video_id; a CocoVID file has {', '.join(TABLES)}")
    videos = [{"id": image["id"], "name": str(image.get("file_name", image["id"]))} for image in pictures if "id" in image]
    return {
        **document,
        "videos": videos,
        "images": [image | {"video_id": image.get("id"), "frame_id": 0} for image in pictures],
    }


# CSV


def _from_csv(file: Path, folder: Path) -> Document:
    reader = csv.DictReader(_text(file).splitlines(), skipinitialspace=True)
    names = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    lacking = [name for name in ("file", "label", *_CORNERS) if name not in names]
    if lacking:
        raise ConfigError(
            f"{file}: has no column {', '.join(lacking)}; its first line must be file,frame,label,x1,y1,x2,y2 (corners in px)"
        )
    making = _Making(folder)
    problems = []
    for row in reader:
        where = f"line {reader.line_num}"
        try:
            corners = [float(row[name]) for name in _CORNERS]
            frame = int(row.get("frame") or 0)
        except (TypeError, ValueError):
            problems.append(
                f"{where}: frame must be a whole number and {', '.join(_CORNERS)} numbers; got {list(row.values())}"
            )
            continue
        if not row["file"] or not row["label"] or frame < 0:
            problems.append(f"{where}: needs a file, a label, and a frame of 0 or more; got {list(row.values())}")
            continue
        x1, y1, x2, y2 = corners
        making.box(making.image(row["file"].strip(), frame), row["label"].strip(), (x1, y1, x2 - x1, y2 - y1))
    return making.document(file, problems)


# YOLO


def _from_yolo(file: Path, folder: Path) -> Document:
    try:
        given = yaml.safe_load(_text(file))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not YAML: {' '.join(str(error).split())}") from error
    names = given.get("names") if isinstance(given, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    train = given.get("train") if isinstance(given, dict) else None
    if not isinstance(names, dict) or not isinstance(train, str):
        raise ConfigError(f"{file}: a YOLO data file has 'names' (a list or a mapping) and 'train' (a folder of pictures)")
    root = folder / str(given.get("path") or "")
    pictures = root / train
    found = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in _PICTURES)
    if not found:
        raise ConfigError(f"{file}: {pictures} holds no pictures; 'train' counts from 'path', and that from {folder}")
    making = _Making(folder, [str(name) for _, name in sorted(names.items())])
    problems: list[str] = []
    for picture in found:
        image = making.image(str(picture), 0)
        labels = _labels_of(picture)
        if not labels.is_file():
            continue  # a picture without a box
        for number, line in enumerate(_text(labels).splitlines(), start=1):
            _yolo_box(making, image, names, line.split(), f"{labels} line {number}", problems)
    return making.document(file, problems)


def _labels_of(picture: Path) -> Path:
    """Return where the boxes of a picture are: in ``labels`` where it lies in ``images``, else beside it."""
    parts = list(picture.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _yolo_box(
    making: _Making, image: dict[str, Any], names: dict[Any, Any], words: Sequence[str], where: str, problems: list[str]
) -> None:
    """Add a line ``class x y width height``: the center and the size as shares of the picture's sides."""
    if not words:
        return
    try:
        label, (x, y, w, h) = int(words[0]), (float(word) for word in words[1:])
    except ValueError:
        problems.append(f"{where}: needs a class and four numbers; got {' '.join(words)[:60]!r} (outlines are not read)")
        return
    if label not in names:
        problems.append(f"{where}: class {label} is not in 'names', which has {sorted(names)}")
        return
    width, height = image["width"], image["height"]
    making.box(image, str(names[label]), ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height))


class _Making:
    """A document in the making. Sizes of pictures and videos are looked up once each."""

    def __init__(self, folder: Path, classes: Iterable[str] = ()) -> None:
        self._folder = folder
        self._classes = {name: number for number, name in enumerate(classes, start=1)}
        self._videos: dict[str, dict[str, Any]] = {}
        self._images: dict[tuple[str, int], dict[str, Any]] = {}
        self._boxes: list[dict[str, Any]] = []
        self._problems: list[str] = []

    def image(self, name: str, frame: int) -> dict[str, Any]:
        """Return the entry of a picture, or of a frame of a video."""
        if (name, frame) not in self._images:
            is_picture = Path(name).suffix.lower() in _PICTURES
            video = self._videos.get(name)
            if video is None:
                width, height = self._size(self._folder / name, is_picture)
                video = {"id": len(self._videos) + 1, "name": Path(name).stem, "width": width, "height": height}
                self._videos[name] = video if is_picture else video | {"file_name": name}
            entry = {"id": 0, "video_id": video["id"], "frame_id": frame, "width": video["width"], "height": video["height"]}
            self._images[name, frame] = entry | {"file_name": name} if is_picture else entry
        return self._images[name, frame]

    def box(self, image: dict[str, Any], label: str, xywh: tuple[float, float, float, float]) -> None:
        """Add a box."""
        category = self._classes.setdefault(label, len(self._classes) + 1)
        self._boxes.append({"image": image, "category_id": category, "bbox": list(xywh)})

    def document(self, file: Path, problems: list[str]) -> Document:
        """Return the document. Raises ``ConfigError`` that lists what was wrong."""
        if problems := [*self._problems, *problems]:
            shown = "\n  ".join(problems[:30])
            raise ConfigError(f"{file}: {len(problems)} problem(s) in the annotations:\n  {shown}")
        for number, image in enumerate(self._images.values(), start=1):
            image["id"] = number
        return {
            "videos": list(self._videos.values()),
            "images": list(self._images.values()),
            "annotations": [
                {"id": n, "image_id": box["image"]["id"], "category_id": box["category_id"], "bbox": box["bbox"]}
                for n, box in enumerate(self._boxes, start=1)
            ],
            "categories": [{"id": number, "name": name} for name, number in self._classes.items()],
        }

    def _size(self, path: Path, is_picture: bool) -> tuple[int, int]:
        """Return width and height, px; 1 and 1 where they cannot be read, which is noted."""
        if not path.is_file():
            self._problems.append(f"{path} does not exist; files count from the folder of this file, or from 'images'")
            return 1, 1
        if is_picture:
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is not None:
                return int(image.shape[1]), int(image.shape[0])
        else:
            capture = cv2.VideoCapture(str(path))
            try:
                there, image = capture.read()
            finally:
                capture.release()
            if there:
                return int(image.shape[1]), int(image.shape[0])
        self._problems.append(f"{path}: cannot be decoded as {'a picture' if is_picture else 'a video'}")
        return 1, 1
