"""Where things are in a LeRobot data set, versions 3 and 2.1: episodes, their rows and their pieces of video.

Everything is looked up in the metadata, never told from file names: version 3 keeps many episodes in one file. Reads tables of
metadata only, no row of data and no image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.errors import SourceError, nearest

__all__ = ["DepthCodes", "Episode", "LeRobotLayout", "Piece"]

_QMAX = 4095


@dataclass(frozen=True, slots=True)
class Piece:
    """An episode's part of a video file."""

    file: Path
    start_s: float
    """Of the episode within the file."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode."""

    index: int
    length: int
    data: Path
    videos: Mapping[str, Piece]


@dataclass(frozen=True, slots=True)
class DepthCodes:
    """How 12-bit codes of a depth video stand for meters."""

    low_m: float = 0.01
    high_m: float = 10.0
    shift_m: float = 3.5
    is_log: bool = True

    def meters(self, codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """Return meters. Code 0 is 0, no reading: depth of 0 is stored as the least code, like all at or below ``low_m``."""
        share = np.minimum(codes, _QMAX).astype(np.float64) / _QMAX
        if self.is_log:
            low, high = math.log(self.low_m + self.shift_m), math.log(self.high_m + self.shift_m)
            depth = np.exp(low + share * (high - low)) - self.shift_m
        else:
            depth = self.low_m + share * (self.high_m - self.low_m)
        return np.where(codes == 0, 0.0, depth.clip(self.low_m, self.high_m)).astype(np.float32)


class LeRobotLayout:
    """The metadata of one data set."""

    def __init__(self, root: Path) -> None:
        """Read it. Raise ``SourceError`` for a folder that holds no data set of version 2 or 3."""
        self.root = root
        self.info = _read_json(root / "meta" / "info.json")
        self.version = str(self.info.get("codebase_version", ""))
        if not self.version.startswith(("v2", "v3")):
            raise SourceError(f"{str(root)!r} is a LeRobot data set of version {self.version!r}; v2.0, v2.1 and v3.0 are read")
        try:
            self.fps = float(self.info["fps"])
            self.features: dict[str, dict[str, Any]] = dict(self.info["features"])
            self.episodes = self._episodes_v3() if self.version.startswith("v3") else self._episodes_v2()
            self.tasks = self._tasks()
        except (KeyError, TypeError, ValueError, pa.ArrowException, OSError) as error:
            raise SourceError(f"the metadata of {str(root)!r} cannot be used: {error!r}") from error

    @property
    def cameras(self) -> list[str]:
        """Return the features that are color images or videos."""
        return [name for name in self._visual() if not self.is_depth(name)]

    @property
    def depths(self) -> list[str]:
        """Return the features that are depth."""
        return [name for name in self._visual() if self.is_depth(name)]

    def _visual(self) -> list[str]:
        return [name for name, feature in self.features.items() if feature.get("dtype") in ("image", "video")]

    def is_depth(self, name: str) -> bool:
        """Return whether a feature is a depth map."""
        return any(
            bool(info.get(key))
            for info in (self.features[name].get("info") or {}, self.features[name].get("video_info") or {})
            for key in ("is_depth_map", "video.is_depth_map")
        )

    def depth_codes(self, name: str) -> DepthCodes:
        """Return how the codes of a depth video are to be read, from the feature's info."""
        told = {**(self.features[name].get("video_info") or {}), **(self.features[name].get("info") or {})}

        def get(key: str, default: Any) -> Any:
            return next((told[name] for name in (key, f"video.{key}", f"depth.{key}") if name in told), default)

        plain = DepthCodes()
        codes = DepthCodes(
            float(get("depth_min", plain.low_m)),
            float(get("depth_max", plain.high_m)),
            float(get("shift", plain.shift_m)),
            bool(get("use_log", plain.is_log)),
        )
        if codes.is_log and codes.low_m + codes.shift_m <= 0:
            raise SourceError(f"feature {name!r}: depth_min + shift is {codes.low_m + codes.shift_m}; it must be above 0")
        return codes

    def find(self, name: str | None, among: Sequence[str], what: str) -> str | None:
        """Return the feature ``name``, or the only one; None where there is none and none was asked for."""
        if name is not None:
            if name not in among:
                raise SourceError(f"{what}: {str(self.root)!r} has no {name!r}{nearest(name, among)}; it has {list(among)}")
            return name
        if len(among) > 1:
            raise SourceError(f"{str(self.root)!r} has several: {list(among)}; name one by {what}: {among[0]}")
        return among[0] if among else None

    def _tasks(self) -> dict[int, str]:
        table, lines = self.root / "meta" / "tasks.parquet", self.root / "meta" / "tasks.jsonl"
        if table.is_file():
            rows = pq.read_table(table).to_pylist()
            # Written by pandas, which keeps the text as its index.
            return {int(row["task_index"]): str(row.get("task", row.get("__index_level_0__", ""))) for row in rows}
        return {int(row["task_index"]): str(row["task"]) for row in _read_lines(lines)} if lines.is_file() else {}

    def _episodes_v3(self) -> dict[int, Episode]:
        files = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise SourceError(f"{str(self.root)!r} has no meta/episodes/*/*.parquet")
        videos = [name for name, feature in self.features.items() if feature.get("dtype") == "video"]
        found = {}
        for file in files:
            names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
            for row in pq.read_table(file, columns=names).to_pylist():
                index = int(row["episode_index"])
                data = self.info["data_path"].format(
                    chunk_index=row["data/chunk_index"], file_index=row["data/file_index"], episode_index=index
                )
                pieces = {}
                for name in videos:
                    place = self.info["video_path"].format(
                        video_key=name,
                        chunk_index=row[f"videos/{name}/chunk_index"],
                        file_index=row[f"videos/{name}/file_index"],
                        episode_index=index,
                    )
                    pieces[name] = Piece(self.root / place, float(row[f"videos/{name}/from_timestamp"]))
                found[index] = Episode(index, int(row["length"]), self.root / data, pieces)
        return dict(sorted(found.items()))

    def _episodes_v2(self) -> dict[int, Episode]:
        videos = [name for name, feature in self.features.items() if feature.get("dtype") == "video"]
        size = int(self.info.get("chunks_size", 1000))
        found = {}
        for row in _read_lines(self.root / "meta" / "episodes.jsonl"):
            index = int(row["episode_index"])
            keys = {"episode_chunk": index // size, "episode_index": index}
            pieces = {name: Piece(self.root / self.info["video_path"].format(video_key=name, **keys), 0.0) for name in videos}
            found[index] = Episode(index, int(row["length"]), self.root / self.info["data_path"].format(**keys), pieces)
        return dict(sorted(found.items()))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{str(file)!r} cannot be read: {error}; give the folder of a LeRobot data set") from error
    if not isinstance(values, dict):
        raise SourceError(f"{str(file)!r} holds a {type(values).__name__}, not the description of a LeRobot data set")
    return values


def _read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
