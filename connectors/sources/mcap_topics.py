"""Which topics of a recording are color, depth and camera: by name where one is given, else only where it is certain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from connectors.errors import SourceError, nearest
from connectors.sources.mcap_recording import CameraTopic, ImageTopic, Recording

__all__ = ["camera_topic", "image_topic"]


def image_topic(
    recording: Recording, name: str | None, what: Literal["color", "depth"], files: Sequence[Path]
) -> ImageTopic | None:
    """Return the topic of color or depth. None: there is no depth, or the files are damaged before any image.

    Raise ``SourceError`` where it is not there or not certain.
    """
    where = ", ".join(map(repr, map(str, files)))
    if name is not None:
        found = recording.images.get(name)
        if found is not None:
            if found.is_depth is (what == "color"):
                raise SourceError(f"{what}: {name!r} in {where} holds {'depth' if found.is_depth else 'color'} images")
            return found
        if recording.damages:
            return None
        raise SourceError(f"{what}: {where} has no images on {name!r}{nearest(name, recording.topics)}; {_list(recording)}")
    known = sorted(topic.name for topic in recording.images.values() if topic.is_depth is (what == "depth"))
    if len(known) > 1:
        raise SourceError(f"{where} has several topics of {what}: {', '.join(known)}; name one by {what}: {known[0]}")
    if known:
        return recording.images[known[0]]
    if what == "depth" or recording.damages:
        return None
    undecodable = next((topic for topic in recording.images.values() if topic.is_depth is None and topic.problems), None)
    if undecodable is not None:
        return undecodable
    raise SourceError(f"{where} has no color images of ROS 1, ROS 2 or Foxglove; {_list(recording)}")


def camera_topic(recording: Recording, name: str | None, color: str, frame: str) -> CameraTopic | None:
    """Return the topic of the camera whose images are on ``color`` and name ``frame``. Raise ``SourceError`` without one.

    None: the files are damaged before anything was said about it.
    """
    cameras = {topic: each for topic, each in recording.cameras.items() if each.said}
    if name is not None:
        if name in cameras:
            return cameras[name]
        problem = f"there is no camera on {name!r}{nearest(name, recording.topics)}"
    else:
        beside = f"{color.removesuffix('/compressed').rpartition('/')[0]}/camera_info"
        if beside in cameras:
            return cameras[beside]
        same = sorted(topic for topic, each in cameras.items() if frame and each.said[0][1].frame == frame)
        if len(same) == 1:
            return cameras[same[0]]
        problem = (
            f"several topics hold a camera of the frame {frame!r}: {', '.join(same)}; name one by camera_info: {same[0]}"
            if same
            else f"no camera belongs to the images of {color!r}: none is on {beside!r}, and none names the frame {frame!r}"
        )
    if recording.damages:
        return None
    known = f"cameras are on {', '.join(sorted(cameras))}" if cameras else "the recording has none"
    raise SourceError(f"{problem}; {known}. Name the right one by camera_info, or set camera: [fx, fy, cx, cy]")


def _list(recording: Recording) -> str:
    """Say what topics there are."""
    told = [f"{topic} ({schema or 'no schema'})" for topic, schema in sorted(recording.topics.items())]
    refused = [f"; {topic}: {why}" for topic, why in recording.unread.items() if topic in recording.topics]
    return f"its topics are {', '.join(told) or 'none'}{''.join(refused)}"
