"""Decoding of FRAME images: every encoding gives the same RGB pixels, every bad row an error text."""

import cv2
import numpy as np
import pyarrow as pa
import pytest

from connectors.records import FRAME
from operators.frames import decode_image, decode_row

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
