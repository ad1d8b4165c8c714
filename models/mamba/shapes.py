"""Moving shapes: seeded clips on which a memory of the past is worth something, with their ground truth.

An object's class is its color. In a share of its frames the color is destroyed (gray, motion blur, sometimes an occluder),
so that no detector can name the class from that frame alone; another frame of the same clip can. NumPy and OpenCV only; it
knows nothing of networks. The same configuration and seed give the same pixels.
"""

# T frames, O objects of a clip, H rows, W columns

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from connectors.errors import ConfigError, SinkError
from connectors.extras import optional
from connectors.options import option

cv2 = optional("cv2")

__all__ = ["COLORS", "SHAPES", "Scene", "ShapesConfig", "make_scene", "render_clips", "render_mp4"]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 35),
    "green": (40, 190, 50),
    "blue": (45, 70, 225),
    "yellow": (235, 215, 40),
    "magenta": (215, 45, 205),
    "cyan": (40, 205, 215),
}
"""Class name → RGB. The first ``ShapesConfig.classes`` of them are in use."""

SHAPES = ("circle", "square", "triangle")
_OUTLINE = {  # corners in units of the radius, x right and y down
    "square": np.array([[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]]),
    "triangle": np.array([[0.0, -1.0], [0.95, 0.8], [-0.95, 0.8]]),
}
_BLUR_PX = 9
_SUBPIXEL_BITS = 4  # OpenCV draws at 1/16 px


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesConfig:
    """What the clips look like. Lengths are pixels, speeds pixels per frame."""

    size: int = option(96, "Width and height of a frame.", unit="px", ge=64)
    frames: int = option(16, "Frames of a clip.", ge=1)
    classes: int = option(4, "How many colors are in use.", ge=2, le=len(COLORS))
    degraded: float = option(0.6, "Share of object-frames whose class cannot be seen.", ge=0.0, le=1.0)
    mode: Literal["same_class", "binding"] = option(
        "same_class",
        "same_class: all objects of a clip share the class; binding: two objects of different class and shape, so that the "
        "memory must be read by shape.",
    )
    noise: float = option(0.05, "Standard deviation of the pixel noise, in units of the full range.", ge=0.0)

    def __post_init__(self) -> None:
        if self.mode not in ("same_class", "binding"):
            raise ConfigError(f"shapes: mode is {self.mode!r}; choose 'same_class' or 'binding'")
        if not 2 <= self.classes <= len(COLORS):
            raise ConfigError(f"shapes: classes is {self.classes}; choose 2 to {len(COLORS)}")
        if self.size < 64 or self.frames < 1:
            raise ConfigError(f"shapes: size {self.size} px and {self.frames} frames; at least 64 px and 1 frame are needed")
        if not 0.0 <= self.degraded <= 1.0 or self.noise < 0.0:
            raise ConfigError(f"shapes: degraded {self.degraded}, noise {self.noise}; allowed are 0 to 1, and 0 or more")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in label order."""
        return tuple(COLORS)[: self.classes]


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One clip as geometry; any frame of it can be rendered on its own, in any order.

    A track id is the object's position in ``labels_O``.
    """

    config: ShapesConfig
    seed: int
    labels_O: NDArray[np.int64]
    shapes: tuple[str, ...]
    boxes_TO4: NDArray[np.float32]
    """x1, y1, x2, y2 of the whole object (also where it is occluded), pixel edges: a frame spans 0..size."""
    degraded_TO: NDArray[np.bool_]
    """True where the class cannot be seen."""
    centers_TO2: NDArray[np.float64]
    velocities_TO2: NDArray[np.float64]
    radii_O: NDArray[np.float64]
    grays_TO: NDArray[np.float64]
    occluders_TO2: NDArray[np.float64]
    """Left and right edge of the occluder in x; both 0 where there is none."""

    def frame(self, t: int) -> NDArray[np.uint8]:
        """Render frame ``t`` as [H, W, 3] RGB, 0–255."""
        config = self.config
        image_HW3 = _background(config.size, np.random.default_rng([self.seed, 1]))
        for o, shape in enumerate(self.shapes):
            alpha_HW1 = _coverage(config.size, shape, self.centers_TO2[t, o], self.radii_O[o])
            color_3 = np.array(COLORS[config.class_names[self.labels_O[o]]], np.float32) / 255.0
            if self.degraded_TO[t, o]:
                color_3 = np.full(3, self.grays_TO[t, o], np.float32)
                alpha_HW1 = cv2.filter2D(alpha_HW1, -1, _blur_kernel(self.velocities_TO2[t, o]))[..., None]
            image_HW3 += alpha_HW1 * (color_3 - image_HW3)
            left, right = self.occluders_TO2[t, o]
            if right > left:
                _, top, _, bottom = self.boxes_TO4[t, o]
                columns, rows = slice(round(left), round(right)), slice(max(round(top) - 1, 0), round(bottom) + 1)
                image_HW3[rows, columns] = 0.06
        noise = np.random.default_rng([self.seed, 2, t]).standard_normal(image_HW3.shape, np.float32)
        image_HW3 += config.noise * noise
        frame_HW3: NDArray[np.uint8] = np.rint(np.clip(image_HW3, 0.0, 1.0) * 255.0).astype(np.uint8)
        return frame_HW3

    def frames(self) -> NDArray[np.uint8]:
        """Render the clip as [T, H, W, 3] RGB, 0–255."""
        return np.stack([self.frame(t) for t in range(self.config.frames)])


def make_scene(config: ShapesConfig, seed: int) -> Scene:
    """Draw one clip from ``seed`` (0 or more)."""
    rng = np.random.default_rng([seed, 0])
    T, size = config.frames, config.size
    if config.mode == "same_class":
        count = int(rng.integers(1, 3))
        labels_O = np.full(count, rng.integers(config.classes))
        shapes = tuple(SHAPES[i] for i in rng.integers(len(SHAPES), size=count))
    else:
        count = 2
        labels_O = rng.permutation(config.classes)[:count]
        shapes = tuple(SHAPES[i] for i in rng.permutation(len(SHAPES))[:count])
    radii_O = rng.uniform(10.0, 19.0, count)
    start_O2 = rng.uniform(radii_O[:, None], size - radii_O[:, None], (count, 2))
    angle_O, speed_O = rng.uniform(0.0, 2.0 * np.pi, count), rng.uniform(1.0, 5.0, count)
    velocity_O2 = speed_O[:, None] * np.stack([np.cos(angle_O), np.sin(angle_O)], axis=1)
    centers_TO2, velocities_TO2 = _bounce(start_O2, velocity_O2, radii_O, size, T)
    boxes_TO4 = np.concatenate([centers_TO2, centers_TO2], axis=2)
    boxes_TO4 += np.stack([_extent(shape) for shape in shapes]) * radii_O[:, None]

    degraded_TO = rng.random((T, count)) < config.degraded
    occluded_TO = degraded_TO & (rng.random((T, count)) < 0.5)
    width_TO = boxes_TO4[..., 2] - boxes_TO4[..., 0]
    cover_TO = rng.uniform(0.3, 0.6, (T, count)) * width_TO
    left_TO = boxes_TO4[..., 0] + rng.random((T, count)) * (width_TO - cover_TO)
    return Scene(
        config=config,
        seed=seed,
        labels_O=labels_O.astype(np.int64),
        shapes=shapes,
        boxes_TO4=np.clip(boxes_TO4, 0.0, size).astype(np.float32),
        degraded_TO=degraded_TO,
        centers_TO2=centers_TO2,
        velocities_TO2=velocities_TO2,
        radii_O=radii_O,
        grays_TO=rng.uniform(0.7, 0.95, (T, count)),
        occluders_TO2=np.stack([left_TO, left_TO + cover_TO], axis=2) * occluded_TO[..., None],
    )


def render_mp4(scene: Scene, path: str | Path, *, fps: float = 25.0, scale: int = 4) -> None:
    """Write the clip as an MP4 file (MPEG-4 part 2), each side enlarged ``scale`` times.

    Raise ``SinkError`` if the file cannot be written. MPEG-4 part 2 is what the PyPI builds of OpenCV can write; a detector
    that scales its input to ``config.size`` sees nearly the rendered pixels.
    """
    side = scene.config.size * scale
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (side, side))
    if not writer.isOpened():
        raise SinkError(
            f"cannot write {path} at {fps:g} frames a second: the folder must exist, OpenCV must be able to write 'mp4v' in "
            "MP4; it takes no rate whose numerator is above 65535"
        )
    try:
        for t in range(scene.config.frames):
            large = cv2.resize(scene.frame(t), (side, side), interpolation=cv2.INTER_CUBIC)
            writer.write(cv2.cvtColor(large, cv2.COLOR_RGB2BGR))
    finally:
        writer.release()


def render_clips(
    folder: str | Path,
    *,
    config: ShapesConfig | None = None,
    seeds: Sequence[int] = range(4),
    fps: float = 25.0,
    scale: int = 4,
) -> Path:
    """Write ``clip<seed>.mp4`` per seed and their ground truth; return the path of ``annotations.json`` (COCO-VID).

    Boxes are in pixels of the written video. The file is what ``models.mamba.annotations`` reads and what fine-tuning takes.
    """
    config = config or ShapesConfig()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, list[dict[str, Any]]] = {"videos": [], "images": [], "annotations": []}
    document["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(config.class_names)]
    side = config.size * scale
    for video_id, seed in enumerate(seeds, start=1):
        scene = make_scene(config, seed)
        name = f"clip{seed:04d}"
        render_mp4(scene, folder / f"{name}.mp4", fps=fps, scale=scale)
        document["videos"].append(
            {"id": video_id, "name": name, "file_name": f"{name}.mp4", "width": side, "height": side, "fps": fps}
        )
        for t in range(config.frames):
            image_id = len(document["images"]) + 1
            document["images"].append({"id": image_id, "video_id": video_id, "frame_id": t, "width": side, "height": side})
            for o, (x1, y1, x2, y2) in enumerate((scene.boxes_TO4[t].astype(float) * scale).tolist()):
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]) + 1,
                        "image_id": image_id,
                        "video_id": video_id,
                        "instance_id": o + 1,
                        "category_id": int(scene.labels_O[o]) + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "degraded": bool(scene.degraded_TO[t, o]),
                    }
                )
    target = folder / "annotations.json"
    target.write_text(json.dumps(document), encoding="utf-8")
    return target


def _background(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    coarse = rng.uniform(0.2, 0.7, (6, 6, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    background: NDArray[np.float32] = np.clip(smooth, 0.2, 0.7)
    return background


def _coverage(size: int, shape: str, center_2: NDArray[np.float64], radius: float) -> NDArray[np.float32]:
    """Return the share of each pixel that the shape covers, [H, W, 1]."""
    mask = np.zeros((size, size), np.uint8)
    scale = 1 << _SUBPIXEL_BITS
    center_2 = center_2 - 0.5  # OpenCV's coordinates name pixel centers, ours pixel edges
    if shape == "circle":
        x, y = np.rint(center_2 * scale).astype(int).tolist()
        cv2.circle(mask, (x, y), round(radius * scale), 255, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)
    else:
        corners = np.rint((center_2 + radius * _OUTLINE[shape]) * scale).astype(np.int32)
        cv2.fillConvexPoly(mask, corners, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    coverage: NDArray[np.float32] = (mask.astype(np.float32) / 255.0)[..., None]
    return coverage


def _extent(shape: str) -> NDArray[np.float64]:
    """Return x1, y1, x2, y2 of the shape around its center, in units of the radius."""
    outline = _OUTLINE.get(shape, np.array([[-1.0, -1.0], [1.0, 1.0]]))
    extent: NDArray[np.float64] = np.concatenate([outline.min(axis=0), outline.max(axis=0)])
    return extent


def _blur_kernel(velocity_2: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return a line of 9 px along the velocity that sums to 1."""
    kernel = np.zeros((_BLUR_PX, _BLUR_PX), np.uint8)
    middle = _BLUR_PX // 2
    dx, dy = np.rint(velocity_2 / max(float(np.hypot(*velocity_2)), 1e-9) * middle).astype(int).tolist()
    cv2.line(kernel, (middle - dx, middle - dy), (middle + dx, middle + dy), 255, 1, cv2.LINE_AA)
    normalized: NDArray[np.float32] = kernel.astype(np.float32) / float(kernel.sum())
    return normalized


def _bounce(
    start_O2: NDArray[np.float64], velocity_O2: NDArray[np.float64], radii_O: NDArray[np.float64], size: int, frames: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Move at constant velocity between walls; return centers and velocities, [T, O, 2] each."""
    room_O1 = size - 2.0 * radii_O[:, None]
    free_TO2 = start_O2 - radii_O[:, None] + np.arange(frames)[:, None, None] * velocity_O2
    phase_TO2 = np.mod(free_TO2, 2.0 * room_O1)  # a path between two walls, unfolded, has twice their distance as its period
    back_TO2 = phase_TO2 > room_O1
    centers_TO2 = np.where(back_TO2, 2.0 * room_O1 - phase_TO2, phase_TO2) + radii_O[:, None]
    return centers_TO2, np.where(back_TO2, -velocity_O2, velocity_O2)
