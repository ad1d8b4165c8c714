"""The codec keeps the promises of every operator, both ways."""

from pathlib import Path

import pyarrow as pa
import pytest
from sound_models import share_networks, write_model
from sound_rows import interleaved_sound, pcm, rows_of, tone

from operators.base import Context
from operators.specvqgan_codec import SpecVQGANCodecOperator, SpecVQGANCodecOptions
from operators.specvqgan_codec import operator as specvqgan_codec
from operators.specvqgan_codec.schemas import BLOCK
from pipelines.testing.conformance import check_operator

STREAMS = ("a", "b")


def sound(length: int = 5_000) -> pa.RecordBatch:
    rates = (22050, 16000)
    return interleaved_sound(
        [
            pcm(name, tone(length * rate // 22050, seed, rate), rate=rate, piece=rate // 16)
            for seed, (name, rate) in enumerate(zip(STREAMS, rates, strict=True))
        ]
    )


@pytest.fixture(autouse=True)
def _shared(monkeypatch: pytest.MonkeyPatch) -> None:
    share_networks(monkeypatch, specvqgan_codec)


def codec(folder: Path, mode: str, **options: object) -> SpecVQGANCodecOperator:
    made = SpecVQGANCodecOptions(mode=mode, checkpoint=str(folder), max_streams=2, **options)
    return SpecVQGANCodecOperator(made, Context(name="codec"))


def changed(batch: pa.RecordBatch, **columns: object) -> pa.RecordBatch:
    """Return one row with other content."""
    row = batch.slice(0, 1)
    arrays = [pa.array([columns[f.name]], f.type) if f.name in columns else row.column(f.name) for f in row.schema]
    return pa.RecordBatch.from_arrays(arrays, schema=row.schema)


def test_encoding_conforms(tmp_path: Path) -> None:
    folder, rows = write_model(tmp_path), sound()
    bad = [
        changed(rows, samples=None),
        changed(rows, sample_rate=None),
        changed(rows, sample_rate=900_000),
        changed(rows, samples=[1, 2, 3], channels=2),
        changed(rows, samples=[1, 2, 3], channels=-1),
        changed(rows, samples=None, error="the source could not read it"),
    ]
    check_operator(
        lambda: codec(folder, "encode", block_cols=1),
        rows,
        bad_rows=pa.Table.from_batches(bad).combine_chunks().to_batches()[0],
        fill_after=1,
    )


def test_decoding_conforms(tmp_path: Path) -> None:
    folder, encoder = write_model(tmp_path), codec(write_model(tmp_path), "encode", block_cols=1)
    rows = rows_of(encoder.process(sound(7_000)), "tokens").select(BLOCK.names).combine_chunks().to_batches()[0]
    bad = [
        changed(rows, codebook="another one"),
        changed(rows, bits=9),
        changed(rows, payload=None),
        changed(rows, payload=b"12"),
        changed(rows, n_cols=0),
        changed(rows, n_samples=5000),
        changed(rows, error="the source could not read it"),
    ]
    check_operator(
        lambda: codec(folder, "decode"),
        rows,
        bad_rows=pa.Table.from_batches(bad).combine_chunks().to_batches()[0],
        fill_after=1,
    )
