"""Camera poses in the text formats of the field, and the pose between two others. Always camera to world, meters, NumPy.

A pose that is NaN in the file (lost tracking) stays NaN: whoever uses it says so.
"""

# N poses

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from connectors.errors import SourceError

__all__ = ["Trajectory", "quaternion_matrix", "read_log", "read_matrix", "read_numbers", "read_tum_trajectory", "slerp"]

Floats = npt.NDArray[np.float64]


def read_numbers(path: Path) -> list[tuple[int, list[str]]]:
    """Return the words of each line that is neither empty nor a comment (``#``), with the line's number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{str(path)!r} cannot be read as text: {error}") from error
    lines = enumerate(text.splitlines(), start=1)
    return [(number, line.replace(",", " ").split()) for number, line in lines if line.strip() and line.lstrip()[0] != "#"]


def quaternion_matrix(q_xyzw: Floats) -> Floats:
    """Return the rotation [3, 3] of a quaternion x, y, z, w of any length above 0."""
    x, y, z, w = q_xyzw / np.linalg.norm(q_xyzw)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def slerp(first: Floats, second: Floats, share: float) -> Floats:
    """Return the quaternion ``share`` of the way along the shorter arc."""
    first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
    cosine = float(first @ second)
    if cosine < 0:  # the same rotation from the other side
        second, cosine = -second, -cosine
    if cosine > 1 - 1e-9:
        return first + share * (second - first)
    angle = np.arccos(cosine)
    mixed: Floats = (np.sin((1 - share) * angle) * first + np.sin(share * angle) * second) / np.sin(angle)
    return mixed


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Poses by time, rising."""

    time_us_N: npt.NDArray[np.int64]
    place_N3: Floats
    turn_N4: Floats
    """Quaternions x, y, z, w."""

    def at(self, time_us: int, max_gap_us: int) -> tuple[Floats | None, str | None]:
        """Return the pose [4, 4] at a time, or why there is none: a recorded one, or one between two neighbors."""
        if not len(self.time_us_N):
            return None, "the trajectory is empty"
        after = int(np.searchsorted(self.time_us_N, time_us))
        if after < len(self.time_us_N) and self.time_us_N[after] == time_us:
            return self._pose(self.place_N3[after], self.turn_N4[after]), None
        if after in (0, len(self.time_us_N)):
            first, last = self.time_us_N[[0, -1]] / 1e6
            return None, f"no pose at {time_us / 1e6:.6f} s: the trajectory goes from {first:.6f} to {last:.6f} s"
        before_us, after_us = (int(t) for t in self.time_us_N[after - 1 : after + 1])
        if after_us - before_us > max_gap_us:
            return None, (
                f"no pose at {time_us / 1e6:.6f} s: its neighbors are {(after_us - before_us) / 1e6:.3f} s apart, "
                f"max_pose_gap_s is {max_gap_us / 1e6:g}"
            )
        share = (time_us - before_us) / (after_us - before_us)
        place = (1 - share) * self.place_N3[after - 1] + share * self.place_N3[after]
        return self._pose(place, slerp(self.turn_N4[after - 1], self.turn_N4[after], share)), None

    @staticmethod
    def _pose(place_3: Floats, turn_4: Floats) -> Floats:
        made = np.eye(4)
        made[:3, :3], made[:3, 3] = quaternion_matrix(turn_4), place_3
        return made


def read_tum_trajectory(path: Path) -> Trajectory:
    """Read ``timestamp tx ty tz qx qy qz qw`` lines, sorted by time; of equal times the first stays."""
    rows = []
    for number, words in read_numbers(path):
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != 8 or (np.linalg.norm(values[4:]) == 0):
            raise SourceError(f"{str(path)!r}, line {number}: expected 'time tx ty tz qx qy qz qw', got {' '.join(words)!r}")
        rows.append((round(values[0] * 1e6), values[1:]))
    times = np.array([time_us for time_us, _ in rows], np.int64)
    values_N7 = np.array([values for _, values in rows]).reshape(-1, 7)
    _, first = np.unique(times, return_index=True)
    return Trajectory(times[first], values_N7[first, :3], values_N7[first, 3:])


def read_log(path: Path) -> list[Floats]:
    """Read an Open3D or Redwood trajectory: per frame a line of three numbers, then a 4x4 camera-to-world matrix by rows."""
    lines = read_numbers(path)
    poses = []
    for start in range(0, len(lines), 5):
        block = lines[start : start + 5]
        try:
            matrix = np.array([[float(word) for word in words] for _, words in block[1:]])
            if len(block[0][1]) != 3 or matrix.shape != (4, 4):
                raise ValueError
        except ValueError:
            raise SourceError(
                f"{str(path)!r}, line {block[0][0]}: expected a line of three numbers and four lines of four numbers"
            ) from None
        poses.append(matrix)
    return poses


def read_matrix(path: Path, rows: int, columns: int) -> Floats:
    """Read a matrix of text, NaN included."""
    try:
        matrix = np.array([[float(word) for word in words] for _, words in read_numbers(path)])
    except ValueError as error:
        raise SourceError(f"{str(path)!r} holds no matrix of numbers: {error}") from error
    if matrix.shape != (rows, columns):
        raise SourceError(f"{str(path)!r} holds a matrix of shape {matrix.shape}, expected {(rows, columns)}")
    return matrix
