"""MCAP recordings: what goes with what, every encoding, bad data and restarts; files written by MCAP's own writers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reading import assert_every_restart_is_exact, batches, read_all
from real_data import REAL_DATA
from rgbd_folders import HEIGHT, MATRIX, WIDTH, color, depth, pose

from connectors.errors import ConfigError, SourceError
from connectors.records import RGBD
from connectors.sources.mcap import McapOptions, McapSource
from connectors.sources.mcap_messages import decoder_of
from connectors.sources.mcap_pixels import fitted
from connectors.sources.rgbd import RgbdOptions, RgbdSource

pytest.importorskip("mcap", reason="the extra mcap is not installed")
import mcap_files as made
from mcap.writer import CompressionType
from mcap_files import COLOR, DEPTH, FRAME, INFO, START_S, WORLD, frames, image, packed, transform, write

K = MATRIX.ravel().tolist()


def source(path: Path, **options: object) -> McapSource:
    return McapSource(McapOptions(path=str(path), **options))  # type: ignore[arg-type]


def rows_of(path: Path, **options: object) -> list[dict]:
    table = read_all(source(path, **options))
    assert table.schema == RGBD
    return table.to_pylist()


def seconds(row: dict) -> float:
    return row["event_time"].timestamp() - START_S


def pose_between(number: int) -> np.ndarray:
    """Work out the camera's pose between two recorded poses of the body: places in a line, turns evenly."""
    body = made.body_at(number)
    body[:3, 3] = (made.body_at(number - 0.25)[:3, 3] + made.body_at(number + 0.25)[:3, 3]) / 2
    return body @ np.linalg.inv(made.BODY_IN_CAMERA)


@pytest.mark.parametrize("flavor", ["ros2", "ros1", "protobuf", "json"])
def test_frames_have_the_nearest_depth_the_camera_and_the_pose_at_their_time(tmp_path: Path, flavor: str) -> None:
    rows = rows_of(write(tmp_path / "run.mcap", frames(), flavor), world=WORLD)
    assert [row["sequence"] for row in rows] == [0, 1, 2, 3]
    assert {row["stream_id"] for row in rows} == {"run"}
    for number, row in enumerate(rows):
        assert row["error"] is None
        assert seconds(row) == pytest.approx(0.1 * number, abs=1e-6)
        assert (row["encoding"], row["image"]) == ("raw_rgb8", color(number).tobytes())
        assert (row["depth_encoding"], row["depth_scale"]) == ("raw_u16", 1000)
        assert row["depth"] == depth(number).astype("<u2").tobytes()
        assert row["intrinsics"] == K
        np.testing.assert_allclose(np.reshape(row["pose"], (4, 4)), pose_between(number), atol=1e-9)
        np.testing.assert_allclose(np.reshape(row["pose"], (4, 4)), pose(number), atol=1e-3)


def test_messages_of_ros_1_are_read_as_its_own_encoder_writes_them() -> None:
    """Bytes of genpy, which is not installed here: a CameraInfo with lens and region, and a transform."""
    path = Path(__file__).parent / "ros1_messages.json"
    for each in json.loads(path.read_text()):

        class Schema:
            name, encoding, data = each["name"], "ros1msg", each["definition"].encode()

        content = decoder_of(Schema, "ros1")(bytes.fromhex(each["data"]))
        told = content[0] if isinstance(content, list) else content
        assert {name: list(v) if isinstance(v := getattr(told, name), tuple) else v for name in each["fields"]} == each[
            "fields"
        ]


def test_a_definition_of_ros_1_with_other_fields_is_not_guessed(tmp_path: Path) -> None:
    encoder = made._Ros1()
    name, kind, text = encoder.schemas["image"]
    encoder.schemas["image"] = (name, kind, text.replace(b"uint32 width", b"uint16 width"))

    class Schema:
        name, encoding, data = encoder.schemas["image"]

    with pytest.raises(ValueError, match="is not that of ROS 1"):
        decoder_of(Schema, "ros1")


@pytest.mark.parametrize("compression", [CompressionType.NONE, CompressionType.LZ4, CompressionType.ZSTD])
@pytest.mark.parametrize("use_chunking", [True, False])
def test_any_way_to_store_messages_gives_the_same_rows(
    tmp_path: Path, compression: CompressionType, use_chunking: bool
) -> None:
    wanted = rows_of(write(tmp_path / "a" / "run.mcap", frames()), world=WORLD)
    path = write(tmp_path / "b" / "run.mcap", frames(), compression=compression, use_chunking=use_chunking)
    assert rows_of(path, world=WORLD) == wanted


def test_frames_come_by_their_header_time_whatever_the_order_of_recording(tmp_path: Path) -> None:
    said = sorted(frames(), key=lambda each: (each.topic, -each.time_s))
    wanted = rows_of(write(tmp_path / "a" / "run.mcap", frames()), world=WORLD)
    assert rows_of(write(tmp_path / "b" / "run.mcap", said), world=WORLD) == wanted


def test_mcap_restarts_are_exact_at_every_row(tmp_path: Path) -> None:
    path = write(tmp_path / "run.mcap", frames(5))
    assert_every_restart_is_exact(lambda: source(path, world=WORLD), rows=2)


def test_batches_keep_to_the_bytes_that_are_asked_for(tmp_path: Path) -> None:
    reader = source(write(tmp_path / "run.mcap", frames(5))).open("run", None)
    assert [batch.num_rows for batch in batches(reader, 100, 2 * (3 + 2) * HEIGHT * WIDTH + 500)] == [2, 2, 1]


def test_a_recording_that_has_changed_is_not_continued(tmp_path: Path) -> None:
    path = write(tmp_path / "run.mcap", frames())
    position = source(path).open("run", None).position()
    write(path, frames(5))
    with pytest.raises(SourceError, match="have changed since the position was recorded"):
        source(path).open("run", position)


# Time


def test_depth_further_off_than_the_limit_is_no_depth(tmp_path: Path) -> None:
    path = write(tmp_path / "run.mcap", frames(depth_shift_s=0.021))
    assert [(row["depth"], row["error"]) for row in rows_of(path)] == [(None, None)] * 4
    assert all(row["depth"] for row in rows_of(path, pair_ms=21))
    assert [row["depth"] for row in rows_of(path, pair_ms=21, with_depth=False)] == [None] * 4


def test_frames_before_the_transforms_or_in_their_gaps_say_so(tmp_path: Path) -> None:
    said = [each for each in frames(6) if each.topic != "/tf" or not START_S + 0.1 < each.time_s < START_S + 0.38]
    said = [each for each in said if each.topic != "/tf" or each.time_s > START_S]
    errors = [row["error"] for row in rows_of(write(tmp_path / "run.mcap", said), world=WORLD)]
    assert (
        "transform body in base_link: no pose at 1700000000.000000 s: the trajectory goes from 1700000000.025000" in errors[0]
    )
    assert "neighbors are 0.350 s apart, max_pose_gap_s is 0.2" in errors[1]
    assert [error is None for error in errors] == [False] * 5 + [True]


def test_time_is_that_of_the_header_or_of_the_recording(tmp_path: Path) -> None:
    late = [made.Said(each.topic, each.kind, each.time_s + 7, each.content) for each in frames()]
    path = write(tmp_path / "run.mcap", late)
    assert [seconds(row) for row in rows_of(path, world=WORLD)] == pytest.approx([0, 0.1, 0.2, 0.3])
    logged = rows_of(path, world=WORLD, time="log")
    assert [seconds(row) for row in logged] == pytest.approx([7, 7.1, 7.2, 7.3])
    assert [row["error"] for row in logged] == [None] * 4  # transforms are taken by the same clock


def test_images_without_a_time_in_their_header_say_what_to_set(tmp_path: Path) -> None:
    said = [made.Said(e.topic, e.kind, e.time_s, e.content | ({"stamp": 0} if e.kind == "image" else {})) for e in frames()]
    path = write(tmp_path / "run.mcap", said)
    assert [row["error"] for row in rows_of(path)] == [f"{COLOR}: its header has no time; set time: log"] * 4
    assert [row["error"] for row in rows_of(path, time="log")] == [None] * 4


def test_a_camera_that_changes_holds_from_then_on(tmp_path: Path) -> None:
    other = np.diag([2.0, 2.0, 1.0]) @ MATRIX
    said = [*frames(), made.camera(INFO, START_S + 0.15, other), made.camera(INFO, START_S + 0.16, other)]
    rows = rows_of(write(tmp_path / "run.mcap", said))
    assert [row["intrinsics"][0] for row in rows] == [30, 30, 60, 60]


# Frames of reference


def test_without_a_world_there_is_no_pose(tmp_path: Path) -> None:
    assert [row["pose"] for row in rows_of(write(tmp_path / "run.mcap", frames()))] == [None] * 4


def test_poses_go_up_and_down_the_tree_of_transforms(tmp_path: Path) -> None:
    marker = np.array([[0, 1, 0, 1.0], [-1, 0, 0, 2.0], [0, 0, 1, 3.0], [0, 0, 0, 1]])
    said = [*frames(), transform("/tf_static", START_S, WORLD, "marker", marker)]
    for number, row in enumerate(rows_of(write(tmp_path / "run.mcap", said), world="marker")):
        np.testing.assert_allclose(np.reshape(row["pose"], (4, 4)), np.linalg.inv(marker) @ pose_between(number), atol=1e-9)
    assert rows_of(tmp_path / "run.mcap", world=FRAME)[0]["pose"] == np.eye(4).ravel().tolist()


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ("base_lnk", "no frame 'base_lnk'.*base_link"),
        ("elsewhere", r"no transforms lead from the camera's frame 'camera_color_optical_frame' to 'elsewhere': .*'base_link'"),
        ("two", "'camera_color_optical_frame' has several parents .*body, two"),
    ],
)
def test_a_world_that_the_camera_is_not_certainly_in_is_refused(tmp_path: Path, world: str, message: str) -> None:
    said = [*frames(), transform("/tf_static", START_S, "elsewhere", "box", np.eye(4))]
    if world == "two":
        said.append(transform("/tf_static", START_S, "two", FRAME, np.eye(4)))
    with pytest.raises(SourceError, match=message):
        rows_of(write(tmp_path / "run.mcap", said), world=world)


def test_the_frame_of_the_camera_can_be_given(tmp_path: Path) -> None:
    said = [
        image(COLOR, START_S + 0.1, "rgb8", color(0), frame=""),
        *(e for e in frames() if e.kind in ("transforms", "camera")),
    ]
    path = write(tmp_path / "run.mcap", said)
    with pytest.raises(SourceError, match="name no frame; set camera_frame: NAME"):
        rows_of(path, world=WORLD)
    (row,) = rows_of(path, world=WORLD, camera_frame=FRAME)
    np.testing.assert_allclose(np.reshape(row["pose"], (4, 4)), pose_between(1), atol=1e-9)


def test_a_transform_of_foxglove_that_is_said_once_is_fixed_and_one_of_tf_is_not(tmp_path: Path) -> None:
    once = [e for e in frames() if e.topic != "/tf"] + [transform("/tf", START_S + 0.1, WORLD, "body", made.body_at(0))]
    assert [r["error"] for r in rows_of(write(tmp_path / "a.mcap", once, "json"), world=WORLD)] == [None] * 4
    told = [row["error"] for row in rows_of(write(tmp_path / "b.mcap", once), world=WORLD)]
    assert [each is None for each in told] == [False, True, False, False]


def test_transforms_that_are_none_are_counted_and_left_out(tmp_path: Path) -> None:
    said = [*frames(), transform("/tf", START_S + 0.101, WORLD, "body", np.full((4, 4), np.nan))]
    reader = source(write(tmp_path / "run.mcap", said), world=WORLD).open("run", None)
    assert reader.unread == {"run/transforms": "1 hold NaN or no rotation"}
    assert all(error is None for batch in batches(reader) for error in batch.column("error").to_pylist())


def test_depth_in_another_frame_is_refused_unless_said_to_be_aligned(tmp_path: Path) -> None:
    path = write(tmp_path / "run.mcap", frames(depth_frame="camera_depth_optical_frame"))
    for row in rows_of(path):
        assert row["image"] is None
        assert "depth is in the frame 'camera_depth_optical_frame', color in 'camera_color_optical_frame'" in row["error"]
    assert all(row["depth"] for row in rows_of(path, depth_is_aligned=True))


# Pixels


def one(tmp_path: Path, picture: made.Said, deep: made.Said | None = None, **options: object) -> dict:
    said = [made.camera(INFO, START_S), picture, *([deep] if deep is not None else [])]
    (row,) = rows_of(write(tmp_path / "run.mcap", said), **options)
    return row


@pytest.mark.parametrize("fill", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "8UC3", "rgba8", "bgra8", "8UC4", "mono8", "8UC1"])
def test_every_order_of_colors_becomes_rgb(tmp_path: Path, encoding: str, fill: int) -> None:
    wanted = color(1)
    alpha = np.full((HEIGHT, WIDTH, 1), 9, np.uint8)
    pixels = wanted if encoding.startswith("rgb") else wanted[..., ::-1]
    if encoding in ("mono8", "8UC1"):
        pixels, wanted = color(1)[..., 0], color(1)[..., [0, 0, 0]]
    elif encoding in ("rgba8", "bgra8", "8UC4"):
        pixels = np.concatenate([pixels, alpha], axis=2)
    row = one(tmp_path, image(COLOR, START_S, encoding, np.ascontiguousarray(pixels), fill=fill))
    assert (row["error"], row["encoding"], row["image"]) == (None, "raw_rgb8", wanted.tobytes())


@pytest.mark.parametrize("kind", ["jpeg", "rgb8; jpeg compressed bgr8", "png"])
def test_compressed_color_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    data = made.png(color(1)) if kind == "png" else made.jpeg(color(1))
    row = one(tmp_path, packed(COLOR + "/compressed", START_S, kind, data))
    assert (row["error"], row["encoding"], row["image"]) == (None, "png" if kind == "png" else "jpeg", data)
    assert (row["height"], row["width"], row["intrinsics"]) == (HEIGHT, WIDTH, K)


@pytest.mark.parametrize("big", [False, True])
def test_depth_is_millimeters_of_16_bits_or_meters_of_32(tmp_path: Path, big: bool) -> None:
    picture = image(COLOR, START_S, "rgb8", color(0))
    row = one(tmp_path, picture, image(DEPTH, START_S, "16UC1", depth(0), big=big, fill=3))
    assert (row["depth_encoding"], row["depth_scale"], row["depth"]) == ("raw_u16", 1000, depth(0).astype("<u2").tobytes())
    meters = np.where(depth(0) == 0, np.nan, depth(0) / 1000).astype(np.float32)
    row = one(tmp_path, picture, image(DEPTH, START_S, "32FC1", meters, big=big), depth_scale=500)
    assert (row["depth_encoding"], row["depth_scale"], row["depth"]) == ("raw_f32", 1, meters.astype("<f4").tobytes())
    assert one(tmp_path, picture, image(DEPTH, START_S, "mono16", depth(0)), depth_scale=500)["depth_scale"] == 500


def test_depth_in_the_packings_of_ros_is_unpacked(tmp_path: Path) -> None:
    picture = image(COLOR, START_S, "rgb8", color(0))
    data = made.png(depth(0))
    for kind, head in (("16UC1; compressedDepth png", bytes(12)), ("16UC1; compressedDepth", bytes(12)), ("png", b"")):
        row = one(tmp_path, picture, packed(DEPTH + "/compressedDepth", START_S, kind, head + data))
        assert (row["error"], row["depth_encoding"], row["depth_scale"], row["depth"]) == (None, "png", 1000, data)
    meters = np.where(depth(0) == 0, np.nan, depth(0) / 1000)
    quantum, longest = 100.0, 10.0  # as compressed_depth_image_transport packs: code = a / depth + b
    a = quantum * (quantum + 1)
    b = 1 - a / longest
    codes = np.where(np.isnan(meters), 0, a / np.nan_to_num(meters, nan=1) + b).astype(np.uint16)
    data = struct.pack("<iff", 0, a, b) + made.png(codes)
    row = one(tmp_path, picture, packed(DEPTH + "/compressedDepth", START_S, "32FC1; compressedDepth png", data))
    got = np.frombuffer(row["depth"], "<f4").reshape(HEIGHT, WIDTH)
    assert (row["depth_encoding"], row["depth_scale"]) == ("raw_f32", 1)
    assert np.isnan(got[:4, :4]).all()
    np.testing.assert_allclose(got, meters, rtol=1e-3)


def test_depth_of_another_size_is_scaled_by_the_nearest_pixel_where_the_aspect_is_the_same(tmp_path: Path) -> None:
    picture = image(COLOR, START_S, "rgb8", color(0))
    small = np.ascontiguousarray(depth(0)[::2, ::2])
    row = one(tmp_path, picture, image(DEPTH, START_S, "16UC1", small))
    wanted = [[small[v // 2, u // 2] for u in range(WIDTH)] for v in range(HEIGHT)]
    assert np.frombuffer(row["depth"], "<u2").reshape(HEIGHT, WIDTH).tolist() == wanted
    row = one(tmp_path, picture, image(DEPTH, START_S, "16UC1", small[:, 1:]))
    assert "depth is 15x12 px, color 32x24: the aspects differ; use a topic of depth that is aligned" in row["error"]


def test_scaling_depth_is_that_of_the_operator() -> None:
    torch = pytest.importorskip("torch")
    from models.fourd_vla.geometry import resize_plan

    rng = np.random.default_rng(3)
    deep = rng.integers(0, 9000, (36, 48), dtype=np.uint16)
    for size in ((9, 12), (27, 36), (72, 96), (51, 68)):
        plan = resize_plan((36, 48), size, "stretch")
        wanted = plan.depth(torch.from_numpy(deep.astype(np.float32))[None])[0].numpy()
        np.testing.assert_array_equal(fitted(deep, *size), wanted)


def test_the_matrix_of_rectified_images_is_that_of_p(tmp_path: Path) -> None:
    row = one(tmp_path, image(COLOR, START_S, "rgb8", color(0)), rectified=True)
    assert row["intrinsics"] == (np.diag([2.0, 2.0, 1.0]) @ MATRIX).ravel().tolist()


# Topics


def test_topics_that_are_not_certain_are_asked_for(tmp_path: Path) -> None:
    other = [image("/wrist/image", START_S + 0.1 * n, "bgr8", color(n), frame="wrist") for n in range(4)]
    path = write(tmp_path / "run.mcap", [*frames(), *other])
    with pytest.raises(
        SourceError, match=r"several topics of color: /camera/color/image_raw, /wrist/image; name one by color:"
    ):
        rows_of(path)
    assert len(rows_of(path, color=COLOR)) == 4
    with pytest.raises(
        SourceError, match=r"no camera belongs to the images of '/wrist/image': .*the frame 'wrist'; cameras are on"
    ):
        rows_of(path, color="/wrist/image")
    with pytest.raises(SourceError, match=r"color: .* has no images on '/camera/colour/image_raw'.*'/camera/color/image_raw'"):
        rows_of(path, color="/camera/colour/image_raw")
    with pytest.raises(SourceError, match="holds depth images"):
        rows_of(path, color=DEPTH)
    with pytest.raises(SourceError, match="there is no camera on '/wrist/camera_info'"):
        rows_of(path, color="/wrist/image", camera_info="/wrist/camera_info")
    rows = rows_of(path, color="/wrist/image", camera=[9.0, 8.0, 7.0, 6.0], with_depth=False)
    assert rows[0]["intrinsics"] == [9, 0, 7, 0, 8, 6, 0, 0, 1]


def test_a_camera_elsewhere_belongs_to_images_of_the_same_frame(tmp_path: Path) -> None:
    said = [each for each in frames() if each.kind != "camera"]
    path = write(tmp_path / "run.mcap", [*said, made.camera("/calibration", START_S)])
    assert rows_of(path)[0]["intrinsics"] == K
    path = write(tmp_path / "run.mcap", [*said, made.camera("/one", START_S), made.camera("/two", START_S)])
    with pytest.raises(
        SourceError, match=r"several topics hold a camera of the frame .*: /one, /two; name one by camera_info: /one"
    ):
        rows_of(path)


def test_a_recording_without_cameras_says_what_to_set(tmp_path: Path) -> None:
    path = write(tmp_path / "run.mcap", [each for each in frames() if each.kind != "camera"])
    with pytest.raises(
        SourceError, match=r"the recording has none\. Name the right one by camera_info, or set camera: \[fx, fy"
    ):
        rows_of(path)


def test_a_recording_without_images_lists_its_topics(tmp_path: Path) -> None:
    path = write(tmp_path / "run.mcap", [each for each in frames() if each.kind == "transforms"])
    with pytest.raises(SourceError, match=r"has no color images .* its topics are /tf \(tf2_msgs/msg/TFMessage\), /tf_static"):
        rows_of(path)


def test_several_files_are_several_streams_and_a_folder_of_rosbag2_is_one(tmp_path: Path) -> None:
    write(tmp_path / "b.mcap", frames())
    write(tmp_path / "a.mcap", frames())
    assert source(tmp_path).splits() == source(tmp_path / "*.mcap").streams() == ["a", "b"]
    said = frames(12)
    half = next(n for n, each in enumerate(said) if each.time_s >= START_S + 0.55)
    bag = tmp_path / "bags" / "kitchen"
    write(bag / "kitchen_0.mcap", said[:half])  # holds the fixed transform and the camera
    write(bag / "kitchen_1.mcap", said[half:], compression=CompressionType.LZ4)
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    assert source(bag).splits() == source(tmp_path / "bags").splits() == ["kitchen"]
    whole = rows_of(write(tmp_path / "whole" / "kitchen.mcap", said), world=WORLD)
    assert rows_of(bag, world=WORLD) == whole
    assert [row["error"] for row in whole] == [None] * 12


# Bad data


def test_bad_images_are_one_row_each_and_the_next_follows(tmp_path: Path) -> None:
    good, time = color(0), [START_S + 0.1 * n for n in range(8)]
    torn = image(COLOR, time[1], "rgb8", good)
    torn.content["data"] = torn.content["data"][:-1]
    said = [
        made.camera(INFO, START_S),
        image(COLOR, time[0], "rgb8", good),
        torn,
        image(COLOR, time[2], "bayer_rggb8", good[..., 0]),
        packed(COLOR, time[3], "jpeg", made.jpeg(good)[:-30]),
        packed(COLOR, time[4], "webp", b"RIFF...."),
        image(COLOR, time[5], "rgb8", good[:, ::2]),
        image(COLOR, time[6], "rgb8", good),
        image(DEPTH, time[0], "16UC1", depth(0)),
        image(DEPTH, time[6], "8UC1", good[..., 0]),
        image(COLOR, time[7], "rgb8", good),
    ]
    raw = write(tmp_path / "raw.mcap", [each for each in said if each.kind != "packed"])
    rows = rows_of(raw, color=COLOR, depth=DEPTH)
    wrong = {round(seconds(row) * 10): row["error"] for row in rows if row["error"]}
    assert [row["image"] is None for row in rows] == [row["error"] is not None for row in rows]
    assert sorted(wrong) == [1, 2, 5, 6]
    assert "needs rows of at least 96 bytes, 2304 in all; the message has rows of 96 and 2303 in all" in wrong[1]
    assert "encoding 'bayer_rggb8' is not read as color; read are rgb8, bgr8" in wrong[2]
    assert "the camera's matrix is of 32x24 px, the image has 16x24; set camera" in wrong[5]
    assert f"{DEPTH}: encoding '8UC1' is not read as depth; read are 16UC1, mono16, 32FC1" in wrong[6]
    rows = rows_of(write(tmp_path / "packed.mcap", [each for each in said if each.kind in ("packed", "camera")]))
    assert "JPEG is cut short" in rows[0]["error"]
    assert "('webp') is neither JPEG nor PNG" in rows[1]["error"]


def test_a_camera_that_is_not_calibrated_is_no_camera(tmp_path: Path) -> None:
    said = [each for each in frames(1) if each.kind != "camera"] + [made.camera(INFO, START_S, np.zeros((3, 3)))]
    (row,) = rows_of(write(tmp_path / "run.mcap", said))
    assert "the camera is not calibrated" in row["error"]
    assert rows_of(tmp_path / "run.mcap", camera=[1.0, 1.0, 0.0, 0.0])[0]["error"] is None


@pytest.mark.parametrize("use_chunking", [True, False])
def test_a_file_that_is_cut_gives_what_is_whole_and_says_where_it_ends(tmp_path: Path, use_chunking: bool) -> None:
    whole = write(tmp_path / "whole" / "run.mcap", frames(12), use_chunking=use_chunking)
    wanted, data = rows_of(whole, world=WORLD), whole.read_bytes()
    path = tmp_path / "run.mcap"
    for size in (len(data) * 3 // 4, len(data) - 9):
        path.write_bytes(data[:size])
        reader = source(path, world=WORLD).open("run", None)
        rows = [row for batch in batches(reader) for row in batch.to_pylist()]
        told = [row for row in rows if row["error"] and "is cut or damaged at byte" in row["error"]]
        assert len(told) == 1
        assert f"of {size}, and what comes there is not read" in told[0]["error"]
        assert "run/run.mcap" in reader.unread
        good = [row["image"] for row in rows if not row["error"]]
        assert good == [row["image"] for row in wanted][: len(good)]
        assert len(good) > 4


def test_a_recording_that_was_never_closed_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    write(path, frames(), use_chunking=False)
    data = path.read_bytes()
    from mcap.records import DataEnd
    from mcap.stream_reader import StreamReader

    with path.open("rb") as file:
        for record in StreamReader(file).records:
            if isinstance(record, DataEnd):
                end = file.tell() - 13
                break
    path.write_bytes(data[:end])
    rows = rows_of(path, world=WORLD)
    assert [row["error"] for row in rows[:4]] == [None] * 4
    assert f"the recording was not closed: the file ends at byte {end} without an end mark" in rows[4]["error"]


def test_a_damaged_chunk_costs_its_own_frames_only(tmp_path: Path) -> None:
    path = write(tmp_path / "run.mcap", frames(6), compression=CompressionType.NONE, enable_crcs=True)
    data = bytearray(path.read_bytes())
    at = data.find(color(3).tobytes())
    data[at + 100] ^= 0xFF
    path.write_bytes(data)
    rows = rows_of(path, max_pose_gap_s=1, world=WORLD)
    bad = [row for row in rows if row["error"]]
    assert len(bad) == 1
    assert "run.mcap: the chunk at byte" in bad[0]["error"]
    assert "crc" in bad[0]["error"]
    assert [row["image"] for row in rows if row["image"]] == [color(n).tobytes() for n in (0, 1, 2, 4, 5)]


@pytest.mark.parametrize(("content", "why"), [(b"", "it is empty"), (b"no recording at all", "it is no MCAP file")])
def test_a_file_that_is_no_recording_is_one_row(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "run.mcap").write_bytes(content)
    (row,) = rows_of(tmp_path / "run.mcap", world=WORLD)
    assert row["error"] == f"run.mcap: {why}"


def test_bytes_behind_the_end_of_a_recording_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "run.mcap", frames())
    wanted = rows_of(path, world=WORLD)
    path.write_bytes(path.read_bytes() + bytes(100) + b"more")
    assert rows_of(path, world=WORLD) == wanted


@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_or_missing_byte_gives_a_wrong_image_or_another_error_than_ours(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = write(tmp_path / "whole.mcap", frames(), compression=list(CompressionType)[seed]).read_bytes()
    known = {color(number).tobytes() for number in range(4)}
    path = tmp_path / "run.mcap"
    for _ in range(25):
        broken = bytearray(data)
        for at in rng.integers(8, len(data), rng.integers(1, 4)):
            broken[at] ^= 1 << rng.integers(8)
        path.write_bytes(broken[: rng.integers(8, len(data))] if rng.random() < 0.5 else broken)
        try:
            rows = rows_of(path, world=WORLD)
        except SourceError as error:
            assert "run.mcap" in str(error) or "topics" in str(error) or "transforms" in str(error)
            continue
        assert all((row["image"] in known) == (row["error"] is None) for row in rows)


def test_a_chunk_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcap.records import Chunk
    from zstandard import compress

    from connectors.sources.mcap_recording import unpacked

    bomb = Chunk("zstd", compress(bytes(1 << 24)), 0, 0, 0, 1000)
    with pytest.raises(ValueError, match="says that it holds 1000 bytes and holds more"):
        unpacked(bomb)
    with pytest.raises(ValueError, match="at most 1073741824 are read"):
        unpacked(Chunk("zstd", b"", 0, 0, 0, 1 << 40))


def test_messages_that_are_no_messages_are_rows_or_told(tmp_path: Path) -> None:
    from mcap.writer import Writer

    path = tmp_path / "run.mcap"
    encoder = made._Ros2()
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        said = frames(3)
        channels = {}
        for each in said:
            if each.topic not in channels:
                channels[each.topic] = writer.register_channel(
                    each.topic, "cdr", writer.register_schema(*encoder.schemas[each.kind])
                )
            torn = each.topic == COLOR and abs(each.time_s - START_S - 0.1) < 1e-6
            data = encoder.data(each)[:9] if torn else encoder.data(each)
            writer.add_message(channels[each.topic], round(each.time_s * 1e9), data, 0)
        writer.add_message(channels["/tf"], round((START_S + 1) * 1e9), b"no", 0)
        writer.add_message(
            writer.register_channel("/odd", "cbor", writer.register_schema(*encoder.schemas["image"])), 0, b"", 0
        )
        writer.finish()
    reader = source(path, world=WORLD).open("run", None)
    errors = [row["error"] for batch in batches(reader) for row in batch.to_pylist()]
    assert [error is None for error in errors] == [True, False, True]
    assert "the message cannot be decoded" in errors[1]
    assert "cannot be decoded" in reader.unread["run//tf"]
    assert "messages are 'cbor' with a schema in 'ros2msg'; read are cdr with ros2msg" in reader.unread["run//odd"]


def test_options_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be fx, fy, cx, cy"):
        McapOptions(path="x", camera=[1.0, 2.0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="MCAP recordings"):
        source(tmp_path / "empty").splits()


# Real images


@pytest.mark.skipif(not (REAL_DATA / "rgbd").is_dir(), reason=f"no recordings in {REAL_DATA}; set STREAMBANK_DATA")
def test_a_real_recording_that_is_written_as_mcap_gives_the_rows_of_its_folder(tmp_path: Path) -> None:
    """redkitchen30: JPEG and PNG in the compressed messages of ROS 2, poses at its own times."""
    folder = RgbdSource(RgbdOptions(path=str(REAL_DATA / "rgbd" / "redkitchen30")))
    wanted: Callable[[], list[dict]] = read_all(folder).to_pylist
    matrix = np.reshape(wanted()[0]["intrinsics"], (3, 3))
    said = [made.camera("/kinect/camera_info", START_S, matrix, frame="kinect", size=(480, 640))]
    for row in wanted():
        time_s = START_S + row["event_time"].timestamp()
        said.append(packed("/kinect/image/compressed", time_s, "jpeg", row["image"], frame="kinect"))
        said.append(packed("/kinect/depth/compressed", time_s + 0.012, "16UC1; png compressed", row["depth"], frame="kinect"))
        said.append(transform("/tf", time_s, "kitchen", "kinect", np.reshape(row["pose"], (4, 4))))
    rows = rows_of(write(tmp_path / "redkitchen30.mcap", said), world="kitchen", camera_info="/kinect/camera_info")
    for ours, theirs in zip(rows, wanted(), strict=True):
        assert ours["error"] is None
        np.testing.assert_allclose(ours["pose"], theirs["pose"], atol=1e-6)
        assert seconds(ours) == pytest.approx(theirs["event_time"].timestamp(), abs=2e-6)
        for name in (
            "sequence",
            "image",
            "encoding",
            "height",
            "width",
            "depth",
            "depth_encoding",
            "depth_scale",
            "intrinsics",
        ):
            assert ours[name] == theirs[name], name
