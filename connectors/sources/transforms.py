"""A tree of frames of reference over time, and the pose of one frame in another. Knows no files and no messages.

A transform maps coordinates of the child into those of its parent, as in ROS. What is fixed holds at all times; what moves is
interpolated between two recorded transforms, never beyond them. Memory: eight numbers per transform that was recorded.
"""

# N transforms

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from connectors.errors import SourceError, nearest
from connectors.sources.rgbd_poses import Floats, Trajectory

__all__ = ["PosePath", "TransformTree"]


@dataclass(slots=True)
class _Edge:
    """What was recorded of one child and parent."""

    time_us: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    """x, y, z and the quaternion x, y, z, w of each."""
    says_fixed: bool = False
    says_nothing: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether it holds at all times: by what was said, else because it was said once."""
        return self.says_fixed or (self.says_nothing and len(self.time_us) == 1)

    def trajectory(self) -> Trajectory:
        """Return the transforms by time; of equal times the last stays, and of a fixed edge the last one only."""
        time_us_N = np.array(self.time_us, np.int64)[::-1]
        values_N7 = np.array(self.values, np.float64).reshape(-1, 7)[::-1]
        keep = np.array([0]) if self.is_fixed else np.unique(time_us_N, return_index=True)[1]
        return Trajectory(time_us_N[keep], values_N7[keep, :3], values_N7[keep, 3:])


@dataclass(frozen=True, slots=True)
class _Step:
    """One edge on the way from a frame to another."""

    name: str
    trajectory: Trajectory
    is_fixed: bool
    is_up: bool
    """From child to parent."""


class PosePath:
    """The way from one frame to another."""

    def __init__(self, steps: Sequence[_Step]) -> None:
        self._steps = steps

    def at(self, time_us: int, max_gap_us: int) -> tuple[Floats | None, str | None]:
        """Return the matrix [4, 4] that maps the first frame's coordinates into the last one's, or why there is none."""
        pose = np.eye(4)
        for step in self._steps:
            moment_us = int(step.trajectory.time_us_N[0]) if step.is_fixed else time_us
            made, problem = step.trajectory.at(moment_us, max_gap_us)
            if made is None:
                return None, f"transform {step.name}: {problem}"
            pose = (made if step.is_up else np.linalg.inv(made)) @ pose
        return pose, None


class TransformTree:
    """All transforms of one recording."""

    def __init__(self) -> None:
        self.refused = 0
        """Transforms that are none: NaN, or a rotation of length 0."""
        self._parents: dict[str, dict[str, _Edge]] = {}

    @property
    def frames(self) -> list[str]:
        """Return the names of all frames."""
        return sorted({*self._parents, *(parent for parents in self._parents.values() for parent in parents)})

    def add(
        self, parent: str, child: str, time_us: int, place_3: Sequence[float], turn_4: Sequence[float], *, is_fixed: bool | None
    ) -> None:
        """Take one transform. ``turn_4``: the quaternion x, y, z, w.

        ``is_fixed``: it holds at all times; None where the recording does not say: then it does if it is the only one.
        """
        numbers = (*place_3, *turn_4)
        if not np.isfinite(numbers).all() or not any(turn_4):
            self.refused += 1
            return
        edge = self._parents.setdefault(child, {}).setdefault(parent, _Edge())
        edge.says_fixed |= is_fixed is True
        edge.says_nothing |= is_fixed is None
        edge.time_us.append(time_us)
        edge.values.extend(numbers)

    def path(self, start: str, end: str) -> PosePath:
        """Return the way from frame ``start`` to frame ``end``.

        Raise ``SourceError`` where there is none, or where a frame on it has several parents.
        """
        steps = []
        for child, parent, is_up in self._walk(start, end):
            if len(self._parents[child]) > 1:
                raise SourceError(
                    f"the frame {child!r} has several parents in the transforms ({', '.join(sorted(self._parents[child]))}), "
                    "so its pose is not certain; record one of them only"
                )
            edge = self._parents[child][parent]
            steps.append(_Step(f"{child} in {parent}", edge.trajectory(), edge.is_fixed, is_up))
        return PosePath(steps)

    def _walk(self, start: str, end: str) -> list[tuple[str, str, bool]]:
        """Return child, parent and direction of each edge on the shortest way."""
        neighbors: dict[str, list[tuple[str, str, bool]]] = {}
        for child, parents in self._parents.items():
            for parent in parents:
                neighbors.setdefault(child, []).append((child, parent, True))
                neighbors.setdefault(parent, []).append((child, parent, False))
        ways: dict[str, list[tuple[str, str, bool]]] = {start: []}
        waiting = [start]
        for frame in waiting:  # it grows while it is walked
            for edge in neighbors.get(frame, []):
                other = edge[1] if edge[2] else edge[0]
                if other not in ways:
                    ways[other] = [*ways[frame], edge]
                    waiting.append(other)
        if end in ways:
            return ways[end]
        known = self.frames
        if end not in known:
            raise SourceError(f"the transforms know no frame {end!r}{nearest(end, known)}; they know {known or 'none at all'}")
        if start not in known:
            raise SourceError(f"the transforms know no frame {start!r}, which is the camera's; they know {known}")
        raise SourceError(
            f"no transforms lead from the camera's frame {start!r} to {end!r}: from there one reaches {sorted(ways)}; record "
            "what connects them, or name one of these as world"
        )
