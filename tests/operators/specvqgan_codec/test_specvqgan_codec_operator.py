"""The codec as a user meets it: streaming equals one pass, sound comes back at its length, odd input has an answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sound_models import write_model
from sound_rows import pcm, rows_of, tone

from connectors import records
from connectors.errors import CheckpointMismatch, RecoveryError, SchemaError
from models.specvqgan.codec import bit_rate, encode_blocks, pack_tokens, unpack_tokens
from models.specvqgan.config import RATE
from models.specvqgan.loaders import load_networks
from models.specvqgan.mel import one_shot_mel
from models.specvqgan.resample import mono, resample
from operators.base import Context
from operators.specvqgan_codec import SpecVQGANCodecOperator, SpecVQGANCodecOptions
from operators.specvqgan_codec.schemas import BLOCK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def codec(folder: Path, mode: str, **options: Any) -> SpecVQGANCodecOperator:
    return SpecVQGANCodecOperator(
        SpecVQGANCodecOptions(**({"mode": mode, "checkpoint": str(folder)} | options)), Context(name="codec")
    )


def encoded(folder: Path, batches: list[pa.RecordBatch], close: str | None = "a", **options: Any) -> pa.Table:
    """Return the rows of tokens of a stream that ends."""
    made = codec(folder, "encode", **({"block_cols": 2} | options))
    out = [one for batch in batches for one in made.process(batch)]
    if close is not None:
        made.close_stream(close)
    return rows_of([*out, *made.flush()], "tokens")


def decoded(folder: Path, rows: pa.Table, *, close: bool = True) -> pa.Table:
    made = codec(folder, "decode")
    out = made.process(rows.select(BLOCK.names).combine_chunks().to_batches()[0])
    if close:
        made.close_stream("a")
    return rows_of([*out, *made.flush()], "sound")


def samples_of(rows: pa.Table) -> np.ndarray:
    return np.concatenate([np.array(part, np.int16) for part in rows.column("samples").to_pylist()])


@pytest.mark.parametrize("rate", [22050, 8000, 96000])
def test_tokens_of_a_stream_are_those_of_its_blocks_in_one_pass(folder: Path, rate: int) -> None:
    stereo = np.stack([tone(rate, 1, rate), tone(rate, 2, rate)], 1)
    rows = encoded(folder, [pcm("a", stereo, rate=rate, piece=997)])
    networks = load_networks(folder, ["autoencoder"])
    assert networks.autoencoder is not None
    whole = resample(mono(torch.from_numpy(stereo)), rate)
    mel = one_shot_mel(whole)
    blocks = [mel[:, start : start + 32] for start in range(0, mel.shape[1], 32)]
    wanted = [pack_tokens(tokens, 16) for tokens in encode_blocks(networks.autoencoder, blocks)]
    assert rows.column("payload").to_pylist() == wanted
    assert rows.column("sequence").to_pylist() == [i * 8192 for i in range(len(wanted))]
    assert sum(rows.column("n_samples").to_pylist()) == len(whole)
    times = rows.column("event_time").cast(pa.int64()).to_pylist()
    assert times == [round(i * 8192 * 1e6 / RATE) for i in range(len(wanted))]
    assert set(rows.column("status").to_pylist()) == {"ok"}


def test_a_second_of_sound_is_269_bits_with_1024_codes(folder: Path) -> None:
    rows = encoded(folder, [pcm("a", tone(20 * 4096, 3))], block_cols=20)
    [payload] = rows.column("payload").to_pylist()
    assert len(payload) * 8 == 20 * 5 * 4
    seconds = 20 * 4096 / RATE
    assert len(pack_tokens(unpack_tokens(payload, 20, 16), 1024)) * 8 / seconds == pytest.approx(bit_rate(1024), rel=0.02)
    assert bit_rate(1024) == pytest.approx(269, rel=0.02)


@pytest.mark.parametrize("count", [1, 300, 511, 4096, 8192, 20_000])
def test_sound_comes_back_at_its_length(folder: Path, count: int) -> None:
    sound = decoded(folder, encoded(folder, [pcm("a", tone(count, 4))]))
    assert len(samples_of(sound)) == count
    at = sound.column("sequence").to_pylist()
    assert at == np.cumsum([0, *(len(part) for part in sound.column("samples").to_pylist())])[:-1].tolist()
    assert sound.column("sample_rate").unique().to_pylist() == [RATE]


@pytest.mark.heavy
def test_sound_of_blocks_one_by_one_is_that_of_all_at_once(folder: Path) -> None:
    rows = encoded(folder, [pcm("a", tone(30_000, 5))]).select(BLOCK.names).combine_chunks().to_batches()[0]
    made = codec(folder, "decode")
    out = [one for i in range(rows.num_rows) for one in made.process(rows.slice(i, 1))]
    made.close_stream("a")
    one_by_one = samples_of(rows_of([*out, *made.flush()], "sound"))
    assert np.array_equal(one_by_one, samples_of(decoded(folder, pa.Table.from_batches([rows]))))


def test_silence_and_opposite_channels_are_silence(folder: Path) -> None:
    left = tone(9000, 6)
    stereo = np.stack([left, -left], 1)
    silent, opposite = (encoded(folder, [pcm("a", each)]) for each in (np.zeros(9000, np.int16), stereo))
    assert silent.column("payload").to_pylist() == opposite.column("payload").to_pylist()
    assert np.isfinite(samples_of(decoded(folder, silent)).astype(float)).all()


@pytest.mark.parametrize("kind", [pa.int32(), pa.float32(), pa.float64()])
def test_samples_of_other_types_are_the_same_sound(folder: Path, kind: pa.DataType) -> None:
    sound = tone(9000, 7)
    other = sound.astype(np.int32) << 16 if kind == pa.int32() else sound / 32768
    wanted, found = encoded(folder, [pcm("a", sound)]), encoded(folder, [pcm("a", other, kind=kind)])
    assert found.column("payload").to_pylist() == wanted.column("payload").to_pylist()


def test_samples_that_are_no_numbers_are_silence_and_marked(folder: Path) -> None:
    sound = tone(20_000, 8) / 32768
    broken, mended = sound.copy(), sound.copy()
    broken[9000:9010] = [np.nan, np.inf, -np.inf, *[np.nan] * 7]
    mended[9000:9010] = 0
    rows = encoded(folder, [pcm("a", broken, kind=pa.float64())])
    assert rows.column("payload").equals(encoded(folder, [pcm("a", mended, kind=pa.float64())]).column("payload"))
    assert rows.column("status").to_pylist() == ["ok", "repaired", "ok"]
    made = codec(folder, "encode", block_cols=2)
    made.process(pcm("a", broken, kind=pa.float64()))
    assert made.metrics()["repaired"] == 10
    loud = encoded(folder, [pcm("a", np.clip(sound * 9, -1, 1), kind=pa.float64())])
    assert encoded(folder, [pcm("a", sound * 9, kind=pa.float64())]).column("payload").equals(loud.column("payload"))


@pytest.mark.heavy
def test_a_short_pause_is_silence_and_a_long_one_ends_the_piece(folder: Path) -> None:
    first, second = tone(6000, 9), tone(6000, 10)
    for pause_s in (0.5, 3.0):
        start_us = round(6000 * 1e6 / RATE + pause_s * 1e6)
        rows = encoded(folder, [pcm("a", first), pcm("a", second, start=6000, start_us=start_us)])
        counts, times = rows.column("n_samples").to_pylist(), rows.column("event_time").cast(pa.int64()).to_pylist()
        if pause_s < 2:
            filled = np.concatenate([first, np.zeros(round(0.5 * RATE), np.int16), second])
            assert rows.column("payload").to_pylist() == encoded(folder, [pcm("a", filled)]).column("payload").to_pylist()
            assert set(rows.column("status").to_pylist()) == {"ok"}
        else:
            assert counts == [6000, 6000] and rows.column("status").to_pylist() == ["ok", "gap"]
            assert times == [0, start_us] and rows.column("sequence").to_pylist() == [0, 6000]
            sound = decoded(folder, rows)
            assert sound.column("sequence").to_pylist() == [0, 6000]
            assert sound.column("event_time").cast(pa.int64()).to_pylist() == [0, start_us]


def test_a_change_of_rate_begins_a_piece(folder: Path) -> None:
    later = pcm("a", tone(4000, 1, 16000), rate=16000, start=5000, start_us=round(5000 * 1e6 / RATE))
    rows = encoded(folder, [pcm("a", tone(5000, 0)), later])
    assert rows.column("n_samples").to_pylist() == [5000, round(4000 * RATE / 16000 + 0.49)]
    assert rows.column("status").to_pylist() == ["ok", "gap"]


def test_rows_out_of_order_and_bad_rows_are_answered(folder: Path) -> None:
    sound = pcm("a", tone(9000, 11))
    rows = encoded(folder, [sound.slice(0, 3), sound.slice(1, 2), sound.slice(3)])
    assert rows.column("status").to_pylist() == ["late", "duplicate", "ok", "ok"]
    assert rows.column("payload").to_pylist()[2:] == encoded(folder, [sound]).column("payload").to_pylist()
    with pytest.raises(SchemaError, match=r"'samples' is list.*string.*; it must be a list of int16"):
        codec(folder, "encode").process(sound.set_column(5, "samples", pa.array([["1"]] * sound.num_rows)))


def test_streams_without_sound_give_nothing(folder: Path) -> None:
    assert encoded(folder, [pcm("a", np.zeros(5, np.int16)).slice(0, 0)]).num_rows == 0
    empty = pa.RecordBatch.from_arrays(
        [
            pa.array(["a"]),
            pa.array([0], pa.int64()),
            pa.array([0], records.TIME_TYPE),
            pa.array([RATE], pa.int32()),
            pa.array([1], pa.int8()),
            pa.array([[]], pa.list_(pa.int16())),
            pa.nulls(1, pa.string()),
        ],
        schema=records.PCM,
    )
    assert encoded(folder, [empty]).num_rows == 0


def test_tokens_of_another_codebook_or_outside_of_it_are_refused(folder: Path, tmp_path: Path) -> None:
    rows = encoded(folder, [pcm("a", tone(8192, 12))])
    other = rows.set_column(rows.column_names.index("codebook"), "codebook", pa.array(["0123456789abcdef"]))
    [row] = decoded(folder, other, close=False).to_pylist()
    assert row["status"] == "rejected_corrupt"
    assert "of codebook '0123456789abcdef'" in row["error"] and "decode with the checkpoint that encoded them" in row["error"]
    short = rows.set_column(rows.column_names.index("payload"), "payload", pa.array([b"x"], pa.binary()))
    [row] = decoded(folder, short, close=False).to_pylist()
    assert row["error"] == "1 bytes of tokens for 2 columns of 5 x 4 bits; 5 are needed"


def test_an_evicted_stream_gives_its_last_block_and_says_that_it_starts_over(folder: Path) -> None:
    made = codec(folder, "encode", block_cols=2, max_streams=1)
    out = made.process(pcm("a", tone(3000, 1)))
    out += made.process(pcm("b", tone(3000, 2), start_us=1_000_000))
    out += made.process(pcm("a", tone(3000, 3), start=3000, start_us=2_000_000))
    rows = rows_of(out, "tokens").select(["stream_id", "n_samples", "status"]).to_pylist()
    assert [(row["stream_id"], row["n_samples"], row["status"]) for row in rows] == [
        ("a", 3000, "ok"), ("b", 3000, "ok"), ("a", None, "reset"),
    ]  # fmt: skip
    full = codec(folder, "encode", max_streams=1, on_streams_full="reject")
    full.process(pcm("a", tone(3000, 1)))
    assert rows_of(full.process(pcm("b", tone(2000, 1))), "tokens").column("status").to_pylist() == ["rejected_full"]


def test_what_cannot_be_resumed_or_loaded_is_said(folder: Path, tmp_path: Path) -> None:
    made = codec(folder, "encode", block_cols=2)
    made.process(pcm("a", tone(3000, 1)))
    with pytest.raises(RecoveryError, match="settings mode encode, block_cols 2, this is mode encode, block_cols 3"):
        codec(folder, "encode", block_cols=3).restore(made.snapshot())
    with pytest.raises(CheckpointMismatch, match="is no folder"):
        codec(tmp_path / "nowhere", "encode")
    (folder / "vocoder.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match="has no vocoder"):
        SpecVQGANCodecOperator.examine(SpecVQGANCodecOptions(mode="decode", checkpoint=str(folder)), "codec")
    assert list(SpecVQGANCodecOperator.examine(SpecVQGANCodecOptions(checkpoint=str(folder)), "codec")) == ["tokens"]
