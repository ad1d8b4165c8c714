"""Decoding of FRAME images: every encoding gives the same RGB pixels, every bad row an error text."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from kept_frames import keep
from launches import DEVICE, on_device
from video_streams import frames

from connectors.device_frames import ENCODING, KeptFrames, release
from connectors.records import FRAME, output_schema
from operators.counters import STREAM_COUNTERS, Counters
from operators.frames import ENCODINGS, Frame, admit_frames, as_tensors, decode_image, decode_row, on_host, stack_frames
from operators.output import OutputRows
from operators.streams import STREAM_STATUSES, Stream, StreamOptions, StreamTable

RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
GRAY = RGB[..., 0].copy()


def png(array: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", array)[1])


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("raw_rgb8", RGB.tobytes()),
        ("raw_bgr8", RGB[..., ::-1].tobytes()),
        ("raw_f32_rgb", RGB.astype("<f4").tobytes()),
        ("png", png(RGB[..., ::-1])),
        ("png", png(np.dstack([RGB[..., ::-1], GRAY]))),
        ("png", png(RGB[..., ::-1].astype(np.uint16) * 257)),
    ],
    ids=["rgb", "bgr", "float", "png", "png with alpha", "16-bit png"],
)
def test_encodings_give_the_same_pixels(encoding: str, data: bytes):
    image = decode_image(data, encoding, 12, 10)
    assert image.dtype == (np.float32 if encoding == "raw_f32_rgb" else np.uint8)
    assert np.array_equal(image, RGB)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [("raw_gray8", GRAY.tobytes()), ("png", png(GRAY)), ("png", png(GRAY.astype(np.uint16) * 257))],
    ids=["raw", "png", "16-bit png"],
)
def test_gray_becomes_three_equal_channels(encoding: str, data: bytes):
    assert np.array_equal(decode_image(data, encoding, 12, 10), np.repeat(GRAY[..., None], 3, axis=2))


def test_16_bit_values_are_rounded_to_8_bit():
    values = np.array([[0, 128, 129, 257, 65535, 300, 385, 386]], np.uint16)
    assert decode_image(png(values), "png", 1, 8)[0, :, 0].tolist() == [0, 0, 1, 1, 255, 1, 1, 2]


def test_jpeg_is_close_and_in_rgb_order():
    flat = np.full((16, 16, 3), (200, 30, 60), np.uint8)
    data = bytes(cv2.imencode(".jpg", flat[..., ::-1])[1])
    assert np.abs(decode_image(data, "jpeg", 16, 16).astype(int) - flat).max() <= 4


@pytest.mark.parametrize(
    ("data", "encoding", "size", "message"),
    [
        (b"", "jpeg", (4, 4), "has no bytes"),
        (b"not an image", "png", (4, 4), "12 bytes cannot be decoded"),
        (RGB.tobytes()[:-1], "raw_rgb8", (12, 10), "needs 360 bytes, got 359"),
        (RGB.tobytes(), "raw_rgb8", (0, 10), "positive height and width, got 0x10"),
        (RGB.tobytes(), "raw_rgb8", (None, 10), "positive height and width"),
        (RGB.tobytes(), "webp", (12, 10), "'webp' is not supported; use one of jpeg, png"),
        (RGB.tobytes(), None, (12, 10), "None is not supported"),
        (np.full((1, 1, 3), np.nan, "<f4").tobytes(), "raw_f32_rgb", (1, 1), "NaN, infinite or outside"),
        (np.full((1, 1, 3), np.inf, "<f4").tobytes(), "raw_f32_rgb", (1, 1), "NaN, infinite or outside"),
        (np.full((1, 1, 3), 256.0, "<f4").tobytes(), "raw_f32_rgb", (1, 1), "outside 0..255"),
    ],
)
def test_unusable_image_says_why(data: bytes, encoding: str, size: tuple[int, int], message: str):
    with pytest.raises(ValueError, match=message):
        decode_image(data, encoding, *size)


def test_bad_rows_of_a_batch_are_flagged_and_the_others_decoded():
    batch = pa.RecordBatch.from_pydict(
        {
            "stream_id": ["a"] * 4,
            "sequence": [0, 1, 2, 3],
            "event_time": [0, 1, 2, 3],
            "image": [RGB.tobytes(), None, b"junk", RGB.tobytes()],
            "encoding": ["raw_rgb8", "raw_rgb8", "png", "raw_rgb8"],
            "height": [12] * 4,
            "width": [10] * 4,
            "error": [None, None, None, "truncated file"],
        },
        schema=FRAME,
    )
    decoded = [decode_row(batch, row) for row in range(3)]
    assert np.array_equal(decoded[0][0], RGB) and decoded[0][1] is None
    assert decoded[1] == (None, "the row has no image")
    assert decoded[2][0] is None and "cannot be decoded" in decoded[2][1]


def admitted(batch: pa.RecordBatch) -> tuple[dict[int, Frame | None], list[tuple[str, str | None]]]:
    """Row → its image, and status and error of those that were left out."""
    schema, statuses = output_schema("seen", 1), {"ok": "fine", **STREAM_STATUSES, "rejected_corrupt": "unusable"}
    streams = StreamTable(
        "see", lambda _, slot: Stream(slot), StreamOptions(), kind=Stream, counters=Counters(*STREAM_COUNTERS)
    )
    out = OutputRows(batch, schema, statuses)
    found = {frame.row: frame.content for frame in admit_frames(batch, streams, out, before_eviction=lambda stream: None)}
    rows = pa.Table.from_batches(out.batches({})).to_pylist()
    return found, [(row["status"], row["error"]) for row in rows if row["status"] != "ok"]


def test_a_row_names_the_frame_that_is_kept_or_says_why_it_has_none() -> None:
    kept = KeptFrames(1 << 20)
    plain = frames([("a", number) for number in range(4)], images=[RGB + number for number in range(4)])
    named = keep(plain, kept)
    found, refused = admitted(named)
    assert [np.array_equal(found[row].numpy(), RGB + row) for row in range(4)] == [True] * 4
    assert refused == []
    release(named.slice(2, 1))
    sizes = named.set_column(5, named.schema.field(5), pa.array([12, 10, 12, 12], pa.int32()))
    assert named.schema.names[5] == "height"
    found, refused = admitted(sizes)
    assert list(found) == [0, 3]
    assert refused == [
        ("rejected_corrupt", "the frame that the row names has the shape (12, 10, 3), the row says 10x10"),
        ("rejected_corrupt", "the row names a frame that this process does not keep, or not any longer"),
    ]
    assert decode_row(named, 0) == (None, f"encoding {ENCODING!r} is not supported; use one of {', '.join(ENCODINGS)}")


@pytest.mark.heavy
def test_images_are_brought_together_where_one_is_kept() -> None:
    float_image = RGB.astype(np.float32) + 0.4
    assert stack_frames([RGB, float_image]).equal(torch.from_numpy(np.stack([RGB, RGB])))
    with on_device() as launches:
        there = torch.from_numpy(RGB).to(DEVICE)
        launches.clear()
        stacked = stack_frames([there, RGB, float_image])
        assert stacked.device == DEVICE
        assert launches.uploaded() == 2 * RGB.size  # those of the host only, as bytes
        launches.clear()
        assert [tensor.device for tensor in as_tensors([there, there])] == [DEVICE] * 2
        assert launches.events == []
        assert np.array_equal(on_host(stacked), np.stack([RGB] * 3))
    assert on_host(RGB) is RGB
