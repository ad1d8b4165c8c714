import os

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reading import assert_every_restart_is_exact, read_all

from connectors.errors import ConfigError, SourceError
from connectors.records import FRAME
from connectors.sources.image_header import parse_header
from connectors.sources.images import ImagesOptions, ImagesSource


def source(path, **options):
    return ImagesSource(ImagesOptions(path=str(path), **options))


def picture(value: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """frame1 … frame12.jpg, one of them damaged."""
    path = tmp_path / "cam"
    path.mkdir()
    for number in range(1, 13):
        cv2.imwrite(str(path / f"frame{number}.jpg"), picture(number * 10, 24 + number))
    (path / "frame7.jpg").write_bytes(b"this is no picture")
    (path / "notes.md").write_text("not an image")
    return path


def test_a_folder_is_one_stream_in_natural_order_with_the_bytes_of_its_files(folder):
    table = read_all(source(folder), rows=5)
    assert table.schema == FRAME
    rows = table.to_pylist()
    assert [row["sequence"] for row in rows] == list(range(12))
    assert {row["stream_id"] for row in rows} == {"cam"}
    for number, row in enumerate(rows, start=1):
        if number != 7:
            assert row["image"] == (folder / f"frame{number}.jpg").read_bytes()
            assert (row["encoding"], row["height"], row["width"]) == ("jpeg", 24 + number, 32)


def test_one_bad_image_is_one_row_with_an_error_and_the_next_one_follows(folder):
    rows = read_all(source(folder)).to_pylist()
    assert [row["sequence"] for row in rows if row["error"]] == [6]
    assert rows[6]["error"] == "frame7.jpg: not an image, or of a format that OpenCV cannot decode"
    assert rows[6]["image"] is None
    assert rows[7]["image"] is not None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: data[: len(data) // 2], "JPEG is cut short"),
        (lambda data: data[:3], "JPEG is cut short: no image data"),
        (lambda data: data[:2] + b"abcdef" + data[2:], "JPEG is damaged at byte 2: no marker"),
    ],
)
def test_damaged_jpegs_are_told_without_decoding(tmp_path, damage, message):
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(damage(data))
    (row,) = read_all(source(tmp_path / "a.jpg")).to_pylist()
    assert message in row["error"]


def test_a_cut_png_is_told_without_decoding(tmp_path):
    data = cv2.imencode(".png", picture(9))[1].tobytes()
    (tmp_path / "a.png").write_bytes(data[:-8])
    assert read_all(source(tmp_path / "a.png"))["error"].to_pylist() == ["a.png: PNG is cut short: no end chunk"]


@pytest.mark.parametrize("size", [(1, 1), (40, 56), (700, 3)])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_header_tells_the_size_that_opencv_decodes(size, suffix, channels):
    data = cv2.imencode(suffix, np.zeros((*size, channels), np.uint8))[1].tobytes()
    header = parse_header(data)
    assert (header.height, header.width) == size


def test_progressive_jpeg_is_read(tmp_path):
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    header = parse_header(cv2.imencode(".jpg", picture(5, 33, 47), flags)[1].tobytes())
    assert (header.height, header.width, header.encoding) == (33, 47, "jpeg")


def test_other_formats_are_decoded_to_raw_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (10, 20, 3), dtype=np.uint8)
    for name in ("a.bmp", "b.tiff", "c.ppm"):
        cv2.imwrite(str(tmp_path / name), image)
    for row in read_all(source(tmp_path)).to_pylist():
        assert (row["encoding"], row["height"], row["width"]) == ("raw_bgr8", 10, 20)
        assert row["image"] == image.tobytes()


TAILS = st.binary(max_size=60) | st.sampled_from(
    [b"\0" * 10_000, b"\xff\xd9" * 9, b"\xff" * 5000, bytes(range(256)) * 40, b"IEND"]
)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".webp", ".gif", ".ppm"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=TAILS)
@example(tail=b"")
def test_bytes_behind_the_end_of_an_image_do_not_refuse_it(tmp_path, suffix, tail):
    data = cv2.imencode(suffix, picture(90))[1].tobytes()
    folder = tmp_path / "cam"
    folder.mkdir(exist_ok=True)
    (folder / f"1{suffix}").write_bytes(data + tail)
    (row,) = read_all(source(folder)).to_pylist()
    assert (row["error"], row["height"], row["width"]) == (None, 24, 32)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert row["image"] == (data + tail if suffix in (".jpg", ".png") else decoded.tobytes())


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=40).filter(lambda junk: b"\xff" not in junk), st.integers(1, 3))
def test_bytes_between_the_segments_of_a_jpeg_are_skipped_as_decoders_do(junk, segments):
    data = cv2.imencode(".jpg", picture(90))[1].tobytes()
    at = 2
    for _ in range(segments):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    mixed = data[:at] + junk + data[at:]
    decoded = cv2.imdecode(np.frombuffer(mixed, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (24, 32, 3)
    header = parse_header(mixed)
    assert (header.encoding, header.height, header.width) == ("jpeg", 24, 32)


def test_sizes_may_change_from_image_to_image(tmp_path):
    for i, height in enumerate((10, 30, 20)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture(1, height))
    assert read_all(source(tmp_path))["height"].to_pylist() == [10, 30, 20]


def test_event_time_counts_images_or_is_the_modification_time(folder):
    table = read_all(source(folder, fps=10.0, start_time="1970-01-01T00:01:00Z"))
    assert table["event_time"].cast(pa.int64()).to_pylist()[:3] == [60_000_000, 60_100_000, 60_200_000]
    for number in range(1, 13):
        os.utime(folder / f"frame{number}.jpg", ns=(0, number * 1_000_000_000))
    by_mtime = read_all(source(folder, event_time="mtime"))
    assert by_mtime["event_time"].cast(pa.int64()).to_pylist() == [n * 1_000_000 for n in range(1, 13)]


def test_sub_folders_and_globs_are_one_stream_per_folder(tmp_path):
    for name in ("cam2", "cam10"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), picture(1))
    (tmp_path / "empty").mkdir()
    assert source(tmp_path).splits() == ["cam2", "cam10"]
    assert source(tmp_path / "cam*").splits() == ["cam2", "cam10"]
    assert source(tmp_path / "*" / "*.png").splits() == ["cam2", "cam10"]
    assert source(tmp_path).open("cam10", None).closes == ("cam10",)


def test_restart_at_any_position_delivers_exactly_the_rest(folder):
    assert_every_restart_is_exact(lambda: source(folder), rows=2)


def test_a_batch_stops_at_the_byte_limit_but_holds_one_row(folder):
    reader = source(folder).open("cam", None)
    first, second = ((folder / f"frame{n}.jpg").stat().st_size for n in (1, 2))
    assert reader.read(100, first + second).num_rows == 2
    assert reader.read(100, 1).num_rows == 1


def test_a_changed_folder_is_refused_at_restart(folder):
    reader = source(folder).open("cam", None)
    reader.read(4, 1 << 30)
    (folder / "frame9.jpg").unlink()
    with pytest.raises(SourceError, match=r"have changed since.*12 files then, 11 now; next was 'frame5\.jpg'"):
        source(folder).open("cam", reader.position())


def test_a_file_that_vanishes_while_reading_is_one_row_with_an_error(folder):
    reader = source(folder).open("cam", None)
    (folder / "frame2.jpg").unlink()
    rows = reader.read(3, 1 << 30).to_pylist()
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "No such file" in rows[1]["error"]


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(SourceError, match=r"holds no images or folders of images; it holds 'readme\.txt'"):
        source(tmp_path).splits()


def test_a_start_time_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="start_time: 'noon'"):
        ImagesOptions(path="x", start_time="noon")


def test_options_without_effect_are_refused():
    with pytest.raises(ConfigError, match="event_time: mtime leaves fps and start_time without effect"):
        ImagesOptions(path="x", event_time="mtime", fps=5.0)
