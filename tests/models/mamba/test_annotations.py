"""Reading annotations: good files of all forms are parsed, bad ones are refused with all their faults at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from connectors.errors import ConfigError
from models.mamba.annotations import read_annotations
from models.mamba.frames import FrameStore
from models.mamba.shapes import ShapesConfig, make_scene, render_clips


def _document(folder: Path) -> dict[str, Any]:
    """Two videos of pictures: three frames, listed out of order, and a still."""
    for name in ("a0.png", "a1.png", "a2.png", "b0.png"):
        cv2.imwrite(str(folder / name), np.full((40, 60, 3), 100, np.uint8))
    size = {"height": 40, "width": 60}
    return {
        "videos": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}],
        "images": [
            {"id": 1, "video_id": 7, "frame_id": 0, "file_name": "b0.png", **size},
            {"id": 2, "video_id": 3, "frame_id": 5, "file_name": "a2.png", **size},
            {"id": 3, "video_id": 3, "frame_id": 0, "file_name": "a0.png", **size},
            {"id": 4, "video_id": 3, "frame_id": 2, "file_name": "a1.png", **size},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 20, "bbox": [50, 30, 20, 20], "instance_id": 4},
            {"id": 2, "image_id": 3, "category_id": 10, "bbox": [1, 2, 3, 4]},
            {"id": 3, "image_id": 3, "category_id": 20, "bbox": [5.5, 6, 7, 8], "instance_id": 1},
            {"id": 4, "image_id": 2, "category_id": 10, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        ],
        "categories": [{"id": 20, "name": "dog"}, {"id": 10, "name": "cat"}],
    }


def _write(folder: Path, document: Any) -> Path:
    path = folder / "annotations.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_frames_stand_in_order_with_their_objects(tmp_path: Path) -> None:
    videos = read_annotations(_write(tmp_path, _document(tmp_path)))
    assert videos.classes == ("cat", "dog")  # by category id
    assert videos.video_names == ("a", "b")
    assert videos.frame_I.tolist() == [0, 2, 5, 0] and list(videos.frames_of(0)) == [0, 1, 2]
    boxes, labels = videos.objects(0)
    assert boxes.tolist() == [[1, 2, 4, 6], [5.5, 6, 12.5, 14]] and labels.tolist() == [0, 1]
    assert videos.objects(1)[0].shape == (0, 4)
    assert len(videos.objects(2)[1]) == 0, "crowd boxes are left out"
    assert videos.objects(3)[0].tolist() == [[50, 30, 60, 40]], "cut to the frame"
    assert videos.tracks_N.tolist() == [-1, 1, 4]
    assert FrameStore(videos, tmp_path / "cache").read(3).shape == (40, 60, 3)


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    document = _document(tmp_path)
    images, annotations = document["images"], document["annotations"]
    del images[0]["video_id"]
    images[1]["video_id"] = 99
    images[2]["file_name"] = "gone.png"
    images[3]["frame_id"] = -1
    annotations += [
        {"id": 11, "image_id": 1, "category_id": 30, "bbox": [0, 0, 5, 5]},
        {"id": 12, "image_id": 77, "category_id": 10, "bbox": [0, 0, 5, 5]},
        {"id": 13, "image_id": 3, "category_id": 10, "bbox": [10, 10, -5, 5]},
        {"id": 14, "image_id": 3, "category_id": 10, "bbox": [100, 10, 5, 5]},
        {"id": 15, "image_id": 3, "category_id": 10, "bbox": [1, 2, 3]},
        {"id": 16, "image_id": 3, "category_id": 10, "bbox": [1, 2, 3, float("nan")]},
    ]
    with pytest.raises(ConfigError) as caught:
        read_annotations(_write(tmp_path, document))
    message = str(caught.value)
    for part in (
        "10 problem(s)",
        "image 1: has no video_id",
        "image 2: video_id 99 is not in 'videos'",
        "gone.png does not exist",
        "image 4: frame_id is -1",
        "annotation 11: category_id 30 is not in 'categories'",
        "annotation 12: image_id 77 is not in 'images'",
        "annotation 13: bbox [10, 10, -5, 5] has no area",
        "annotation 14: bbox [100, 10, 5, 5] lies outside image 3, which is 60 px wide and 40 px high",
        "annotation 15: bbox is [1, 2, 3]",
        "annotation 16: bbox is [1, 2, 3, nan]",
    ):
        assert part in message


def test_the_same_frame_twice_and_equal_names_are_faults(tmp_path: Path) -> None:
    document = _document(tmp_path)
    document["images"][1]["frame_id"] = 0
    document["categories"][1]["name"] = "dog"
    document["videos"].append({"id": 3, "name": "again"})
    with pytest.raises(ConfigError, match=r"(?s)id 3 is there twice.*'dog' is there twice.*frame 0 of video 3"):
        read_annotations(_write(tmp_path, document))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ({"images": [{"id": 1, "video_id": 2}], "annotations": [], "categories": []}, "videos missing, but its images have"),
        ({"images": [], "annotations": []}, "categories missing or not a list"),
        ({"videos": [], "images": [], "annotations": [], "categories": []}, "at least one is needed"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path: Path, content: Any, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        read_annotations(_write(tmp_path, content))


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.json: cannot be read"):
        read_annotations(tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="pictures is not a folder"):
        read_annotations(_write(tmp_path, _document(tmp_path)), tmp_path / "pictures")


def test_a_long_list_of_faults_is_cut_and_counted(tmp_path: Path) -> None:
    document = _document(tmp_path)
    document["annotations"] = [{"id": i, "image_id": 0, "category_id": 10, "bbox": [0, 0, 1, 1]} for i in range(500)]
    with pytest.raises(ConfigError, match=r"(?s)500 problem.*and 470 more"):
        read_annotations(_write(tmp_path, document))


def test_labels_can_count_in_another_list_of_classes(tmp_path: Path) -> None:
    videos = read_annotations(_write(tmp_path, _document(tmp_path)))
    wider = videos.with_classes(["horse", "dog", "cat"])
    assert wider.labels_N.tolist() == [2, 1, 1]
    with pytest.raises(ConfigError, match="dog"):
        videos.with_classes(["cat"])


def test_frames_of_a_video_file_are_its_frames_by_number(tmp_path: Path) -> None:
    config = ShapesConfig(frames=6)
    path = render_clips(tmp_path, config=config, seeds=[4], scale=2)
    document = json.loads(path.read_text())
    document["images"] = [image for image in document["images"] if image["frame_id"] in (1, 4)]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] in kept]
    store = FrameStore(read_annotations(_write(tmp_path, document)), tmp_path / "cache")
    store.extract()
    scene = make_scene(config, 4)
    for i, t in enumerate((1, 4)):
        small = cv2.resize(store.read(i), (96, 96), interpolation=cv2.INTER_AREA).astype(float)
        errors = [np.abs(small - scene.frame(other)).mean() for other in range(6)]
        assert int(np.argmin(errors)) == t
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 2


def test_a_video_that_ends_too_early_and_a_wrong_size_are_reported_together(tmp_path: Path) -> None:
    path = render_clips(tmp_path, config=ShapesConfig(frames=3), seeds=[1, 2], scale=1)
    document = json.loads(path.read_text())
    document["images"][2]["frame_id"] = 9
    for image in document["images"][3:]:
        image["width"] = 100
    store = FrameStore(read_annotations(_write(tmp_path, document)), tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"(?s)ends after 3 frames, but frame 9.*96x96 px, but 'images' says 100x96"):
        store.extract()


def test_a_byte_order_mark_does_not_make_a_file_no_json(tmp_path: Path) -> None:
    (tmp_path / "marked.json").write_text("\ufeff" + json.dumps(_document(tmp_path)), encoding="utf-8")
    assert read_annotations(tmp_path / "marked.json").classes == read_annotations(_write(tmp_path, _document(tmp_path))).classes


# Other forms


def test_plain_coco_is_pictures_each_a_video_of_one_frame(tmp_path: Path) -> None:
    document = _document(tmp_path)
    del document["videos"]
    for picture in document["images"]:
        del picture["video_id"], picture["frame_id"]
    videos = read_annotations(_write(tmp_path, document))
    assert videos.video_names == ("b0.png", "a2.png", "a0.png", "a1.png")
    assert [len(videos.frames_of(video)) for video in range(4)] == [1, 1, 1, 1]
    assert videos.objects(0)[0].tolist() == [[50, 30, 60, 40]] and videos.objects(2)[1].tolist() == [0, 1]


def test_a_table_of_boxes_is_read_for_videos_and_pictures(tmp_path: Path) -> None:
    render_clips(tmp_path, config=ShapesConfig(frames=3), seeds=[1], scale=1)
    cv2.imwrite(str(tmp_path / "one.png"), np.full((40, 60, 3), 100, np.uint8))
    (tmp_path / "boxes.csv").write_text(
        "file, frame, label, x1, y1, x2, y2\nclip0001.mp4,2,dog,1,2,30,40\none.png,,cat,0,0,9,9\n"
    )
    videos = read_annotations(tmp_path / "boxes.csv")
    assert videos.classes == ("dog", "cat") and videos.frame_I.tolist() == [2, 0]
    assert videos.objects(0)[0].tolist() == [[1, 2, 30, 40]] and videos.size_I2.tolist() == [[96, 96], [40, 60]]
    store = FrameStore(videos, tmp_path / "cache")
    store.extract()
    assert store.read(0).shape == (96, 96, 3) and store.read(1).shape == (40, 60, 3)


def test_a_table_says_each_line_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(
        "file,frame,label,x1,y1,x2,y2\ngone.mp4,0,dog,1,2,3,4\na.png,x,dog,1,2,3,4\n,0,dog,1,2,3,4\n"
    )
    with pytest.raises(
        ConfigError, match=r"(?s)3 problem.*gone\.mp4 does not exist.*line 3: frame must be.*line 4: needs a file"
    ):
        read_annotations(tmp_path / "boxes.csv")
    (tmp_path / "boxes.csv").write_text("path,xmin\n")
    with pytest.raises(ConfigError, match=r"has no column file, label, x1.*first line must be file,frame,label"):
        read_annotations(tmp_path / "boxes.csv")


def test_yolo_is_read_with_its_names_and_shares(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder / "train").mkdir(parents=True)
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "set" / "images" / "train" / f"{name}.jpg"), np.full((40, 80, 3), 100, np.uint8))
    (tmp_path / "set" / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (tmp_path / "data.yaml").write_text("path: set\ntrain: images/train\nnames: {0: cat, 1: dog}\n")
    videos = read_annotations(tmp_path / "data.yaml")
    assert videos.classes == ("cat", "dog") and len(videos) == 2
    assert videos.objects(0)[0].tolist() == [[30, 10, 50, 30]] and videos.objects(0)[1].tolist() == [1]
    assert len(videos.objects(1)[1]) == 0
    (tmp_path / "set" / "labels" / "train" / "b.txt").write_text("7 0.5 0.5 0.25 0.5\n0 0.1 0.1\n")
    with pytest.raises(ConfigError, match=r"(?s)class 7 is not in 'names'.*line 2: needs a class and four numbers"):
        read_annotations(tmp_path / "data.yaml")


def test_classes_can_be_chosen_and_come_in_that_order(tmp_path: Path) -> None:
    path = _write(tmp_path, _document(tmp_path))
    videos = read_annotations(path, only=["dog", "cat"])
    assert videos.classes == ("dog", "cat") and videos.objects(0)[1].tolist() == [1, 0]
    videos = read_annotations(path, only=["dog"])
    assert videos.classes == ("dog",) and videos.labels_N.tolist() == [0, 0] and len(videos) == 4
    with pytest.raises(ConfigError, match=r"'dgo' is not a category.*did you mean 'dog'"):
        read_annotations(path, only=["dgo"])
