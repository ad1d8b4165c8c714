"""The clips of moving shapes: what a seed fixes, what the statistics promise, and that MP4 files keep all of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from connectors.errors import ConfigError, SinkError
from models.mamba.annotations import read_annotations
from models.mamba.shapes import COLORS, ShapesConfig, make_scene, render_clips, render_mp4


def _color_at_center(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    x, y = ((box[:2] + box[2:]) / 2).astype(int)
    return frame[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(float).mean(axis=0)


def test_a_seed_fixes_every_pixel_and_another_seed_gives_another_clip() -> None:
    config = ShapesConfig(frames=4)
    assert np.array_equal(make_scene(config, 7).frames(), make_scene(config, 7).frames())
    assert not np.array_equal(make_scene(config, 7).frames(), make_scene(config, 8).frames())


def test_a_frame_rendered_by_itself_is_that_frame_of_the_clip() -> None:
    scene = make_scene(ShapesConfig(frames=6), 3)
    clip = scene.frames()
    assert clip.shape == (6, 96, 96, 3) and clip.dtype == np.uint8
    assert np.array_equal(scene.frame(4), clip[4])


def test_the_share_of_degraded_frames_is_the_configured_one() -> None:
    scenes = [make_scene(ShapesConfig(), seed) for seed in range(200)]
    flags = np.concatenate([scene.degraded_TO.ravel() for scene in scenes])
    assert abs(flags.mean() - 0.6) < 4 * np.sqrt(0.6 * 0.4 / flags.size)
    occluded = np.concatenate([(scene.occluders_TO2[..., 1] > 0)[scene.degraded_TO] for scene in scenes])
    assert abs(occluded.mean() - 0.5) < 4 * np.sqrt(0.25 / occluded.size)
    assert not any((scene.occluders_TO2[~scene.degraded_TO] > 0).any() for scene in scenes)


def test_a_clean_object_shows_its_class_and_a_degraded_one_does_not() -> None:
    clean, degraded = ShapesConfig(degraded=0.0, frames=1), ShapesConfig(degraded=1.0, frames=1)
    for seed in range(40):
        scene = make_scene(clean, seed)
        shown = _color_at_center(scene.frame(0), scene.boxes_TO4[0, -1])
        nearest = min(clean.class_names, key=lambda name: float(np.abs(shown - COLORS[name]).sum()))
        assert nearest == clean.class_names[scene.labels_O[-1]]
        hidden = make_scene(degraded, seed)
        color = _color_at_center(hidden.frame(0), hidden.boxes_TO4[0, -1])
        assert np.ptp(color) < 30  # gray or black up to the noise of nine pixels


def test_objects_stay_inside_and_move_at_most_five_pixels_per_frame() -> None:
    scene = make_scene(ShapesConfig(frames=200), 5)
    assert scene.boxes_TO4.min() >= 0.0 and scene.boxes_TO4.max() <= 96.0
    steps = np.linalg.norm(np.diff(scene.centers_TO2, axis=0), axis=2)
    assert steps.max() <= 5.0 + 1e-9
    turned = np.any(np.diff(np.sign(scene.velocities_TO2), axis=0) != 0)
    assert turned, "in 200 frames an object meets a wall"


def test_all_objects_of_a_clip_share_the_class_and_in_binding_mode_differ_in_class_and_shape() -> None:
    for seed in range(50):
        assert len(set(make_scene(ShapesConfig(), seed).labels_O.tolist())) == 1
        scene = make_scene(ShapesConfig(mode="binding"), seed)
        assert len(set(scene.labels_O.tolist())) == len(set(scene.shapes)) == 2


@pytest.mark.parametrize("setting", [{"mode": "same"}, {"classes": 7}, {"size": 32}, {"degraded": 1.5}, {"noise": -0.1}])
def test_an_unusable_setting_is_refused_with_its_value(setting: dict) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(setting.values())))):
        ShapesConfig(**setting)


def test_mp4_files_keep_frames_times_and_colors_and_their_annotations_fit(tmp_path: Path) -> None:
    config = ShapesConfig(frames=8, degraded=0.0)
    annotations = read_annotations(render_clips(tmp_path, config=config, seeds=[11, 12], fps=25.0, scale=4))
    assert annotations.classes == config.class_names
    assert annotations.video_names == ("clip0011", "clip0012")
    for video, seed in enumerate([11, 12]):
        scene = make_scene(config, seed)
        capture = cv2.VideoCapture(str(annotations.video_files[video]))
        positions = annotations.frames_of(video)
        for t, i in enumerate(positions):
            readable, image = capture.read()
            assert readable
            assert capture.get(cv2.CAP_PROP_POS_MSEC) == pytest.approx(40.0 * t)
            boxes, labels = annotations.objects(i)
            assert np.allclose(boxes, scene.boxes_TO4[t] * 4) and np.array_equal(labels, scene.labels_O)
            # The object drawn last is covered by no other.
            difference = _color_at_center(image[..., ::-1], boxes[-1]) - COLORS[config.class_names[labels[-1]]]
            assert np.abs(difference).max() < 30
        assert not capture.read()[0] and len(positions) == 8
        capture.release()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="nowhere"):
        render_mp4(make_scene(ShapesConfig(frames=1), 0), tmp_path / "nowhere" / "clip.mp4")
