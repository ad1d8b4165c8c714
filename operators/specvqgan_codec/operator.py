"""The streaming operator ``specvqgan_codec``: sound of many streams to blocks of tokens, and blocks of tokens to sound.

Both ways a block stands for itself, so what a stream gets does not depend on how its rows were cut, nor on other streams. The
codebook is a bank that all streams read.
"""

# N tokens, M bands, T frames

from __future__ import annotations

import pyarrow as pa
import torch
from torch import Tensor

from connectors import records
from models.specvqgan.codec import bits_of, decode_blocks, encode_blocks, pack_tokens, unpack_tokens
from models.specvqgan.config import COLUMN_FRAMES, HOP, RATE
from models.specvqgan.loaders import load_networks
from models.weight_files import weights_name
from operators.admission import admit_rows
from operators.banks import PoolBank, TailBank
from operators.base import Context, Emitted
from operators.counters import STREAM_COUNTERS, Counters
from operators.event_time import microseconds
from operators.made_rows import MadeRows
from operators.output import NOT_FINITE, OutputRows
from operators.pcm import PcmRow, PcmRows, sound_cells
from operators.specvqgan_codec.config import SpecVQGANCodecOptions
from operators.specvqgan_codec.declaration import OUTPUT_OF, SpecVQGANCodecDeclaration, folder_of, parts_of
from operators.specvqgan_codec.decoding import MOST_COLUMNS, DecodeStream, MadeSound, SoundMaker
from operators.specvqgan_codec.encoding import EncodedPiece, EncodeStream, SoundCutter
from operators.specvqgan_codec.schemas import BLOCK, STATUSES
from operators.state import State
from operators.streams import Stream, StreamTable

__all__ = ["SpecVQGANCodecOperator"]

_NO_TOKENS = "the encoder gave NaN or infinity for this block; check the checkpoint and its precision"


class SpecVQGANCodecOperator(SpecVQGANCodecDeclaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    def __init__(self, options: SpecVQGANCodecOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: SpecVQGANCodecOptions = options
        self.input_schema = self.takes(options)
        networks = load_networks(folder_of(options), parts_of(options), context.device)
        assert networks.autoencoder is not None
        self._autoencoder = networks.autoencoder
        config = self._autoencoder.config
        self.codebook = PoolBank(config.codes, config.code_width, metric="l2", name="codebook", device=context.device)
        self.codebook.write(self._autoencoder.codes_KD)
        self.codebook_id = self.codebook.fingerprint()
        self.model_id = weights_name("specvqgan_codec", config.to_json(), self._autoencoder.state_dict())
        slots = options.max_streams
        self._encodes = options.mode == "encode"
        self._banks: tuple[TailBank, ...]
        if self._encodes:
            self._cutter = SoundCutter(options.block_cols, microseconds(options.max_gap_s), slots)
            self._banks = self._cutter.banks
        else:
            assert networks.vocoder is not None
            self._maker = SoundMaker(networks.vocoder, slots, context.device)
            self._banks = (self._maker.bank,)
        self._output = OUTPUT_OF[options.mode]
        self._counters = Counters(*STREAM_COUNTERS, "blocks", "repaired")
        self._rows = self._new_rows()
        self._left = self._new_rows()
        """Of streams that were closed, up to the next ``flush``."""
        self._key: int | None = None
        self._streams: StreamTable[EncodeStream] | StreamTable[DecodeStream]
        if self._encodes:
            self._streams = self._sources = StreamTable(
                context.name, lambda _, slot: EncodeStream(slot), options, kind=EncodeStream, counters=self._counters,
                ended=self._end_sound,
            )  # fmt: skip
        else:
            self._streams = self._logs = StreamTable(
                context.name, lambda _, slot: DecodeStream(slot), options, kind=DecodeStream, counters=self._counters,
                ended=self._end_tokens,
            )  # fmt: skip

    def _new_rows(self) -> MadeRows:
        return MadeRows(self._output, self.outputs[self._output], STATUSES)

    # Rows

    def process(self, batch: pa.RecordBatch) -> list[Emitted]:
        """Take sound or tokens; return the blocks, or the sound, that are complete now, and the rows that cannot be used."""
        out = OutputRows(batch, self.outputs[self._output], STATUSES)
        if self._encodes:
            self._encode(batch, out)
        else:
            self._decode(batch, out)
        self._key = None
        self._counters.note(out)
        self._rows.refused(batch, out)
        return self._rows.batches()

    def _encode(self, batch: pa.RecordBatch, out: OutputRows) -> None:
        sound = PcmRows(batch, self.context.name)

        def read(row: int, stream: Stream | None, time_us: int) -> tuple[PcmRow | None, str | None]:
            self._key = row  # what a stream leaves that makes room for this one stands before it
            return sound.read(row)

        for one in admit_rows(batch, self._sources, out, read):
            if one.content is not None:
                self._counters.add("repaired", one.content.repaired)
                self._add_blocks(self._rows, one.row, one.stream_id, self._cutter.push(one.stream, one.content, one.time_us))

    def _add_blocks(self, rows: MadeRows, key: int, stream_id: str, pieces: list[EncodedPiece]) -> None:
        if not pieces:
            return
        mels = [piece.block.mel_MT.to(self.context.device) for piece in pieces]
        codes = self._autoencoder.config.codes
        for piece, tokens_N in zip(pieces, encode_blocks(self._autoencoder, mels, self.codebook.nearest), strict=True):
            self._counters.add("blocks")
            tokens_N = tokens_N.cpu()
            there = bool((tokens_N >= 0).all())  # what is no number is near no code
            rows.add(
                key,
                stream_id=stream_id,
                sequence=piece.sequence,
                event_time=piece.time_us,
                codebook=self.codebook_id,
                n_samples=piece.block.samples,
                n_cols=len(tokens_N) // 5,
                bits=bits_of(codes),
                payload=pack_tokens(tokens_N, codes) if there else None,
                status=piece.status if there else NOT_FINITE,
                error=None if there else _NO_TOKENS,
            )

    def _decode(self, batch: pa.RecordBatch, out: OutputRows) -> None:
        records.require(batch, BLOCK, self.context.name)
        columns = {name: batch.column(name).to_pylist() for name in ("codebook", "n_samples", "n_cols", "bits", "payload")}

        def read(row: int, stream: Stream | None, time_us: int) -> tuple[tuple[Tensor, int] | None, str | None]:
            self._key = row
            return self._tokens(**{name: values[row] for name, values in columns.items()})

        for one in admit_rows(batch, self._logs, out, read):
            if one.content is not None:
                tokens_N, samples = one.content
                mel_MT = decode_blocks(self._autoencoder, [tokens_N.to(self.context.device)])[0]
                self._counters.add("blocks")
                with torch.inference_mode():
                    made = self._maker.push(one.stream, mel_MT, one.sequence, samples, one.time_us)
                self._add_sound(self._rows, one.row, one.stream_id, made)

    def _tokens(
        self, codebook: str | None, n_samples: int | None, n_cols: int | None, bits: int | None, payload: bytes | None
    ) -> tuple[tuple[Tensor, int] | None, str | None]:
        """Return the tokens and the number of samples of a row, or why they cannot be decoded."""
        codes = self._autoencoder.config.codes
        if codebook != self.codebook_id:
            return None, (
                f"the tokens are of codebook {codebook!r}, this one is {self.codebook_id!r}; decode with the checkpoint that "
                "encoded them"
            )
        if bits != bits_of(codes):
            return None, f"the tokens have {bits} bits each; those of this codebook of {codes} have {bits_of(codes)}"
        if payload is None or n_cols is None or n_samples is None:
            return None, "the row has no tokens"
        if not 1 <= n_cols <= MOST_COLUMNS:
            return None, f"n_cols is {n_cols}; a block has 1 to {MOST_COLUMNS}"
        whole = HOP * COLUMN_FRAMES * n_cols
        if not whole - HOP * COLUMN_FRAMES < n_samples <= whole:
            return None, f"n_samples is {n_samples}; {n_cols} columns stand for {whole - HOP * COLUMN_FRAMES + 1} to {whole}"
        try:
            return (unpack_tokens(payload, n_cols, codes), n_samples), None
        except ValueError as error:
            return None, str(error)

    def _add_sound(self, rows: MadeRows, key: int, stream_id: str, made: list[MadeSound]) -> None:
        for sound in made:
            rows.add(
                key,
                stream_id=stream_id,
                sequence=sound.sequence,
                event_time=sound.time_us,
                sample_rate=RATE,
                channels=1,
                **{"status": sound.status, **sound_cells(sound.samples_N)},
            )

    # Ends

    def _end_sound(self, stream_id: str, stream: EncodeStream) -> None:
        rows, key = (self._left, 0) if self._key is None else (self._rows, self._key)
        self._add_blocks(rows, key, stream_id, self._cutter.finish(stream))

    def _end_tokens(self, stream_id: str, stream: DecodeStream) -> None:
        rows, key = (self._left, 0) if self._key is None else (self._rows, self._key)
        with torch.inference_mode():
            self._add_sound(rows, key, stream_id, self._maker.finish(stream))

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream. Its last block, or its last sound, comes with the next ``flush``."""
        self._streams.close(stream_id)

    def flush(self) -> list[Emitted]:
        """Return what streams that were closed had left."""
        return self._left.batches()

    def metrics(self) -> dict[str, float]:
        """Return bytes, streams, and counts of the whole run."""
        return {
            "bank_bytes": float(self.codebook.bytes()["device"] + sum(bank.bytes()["device"] for bank in self._banks)),
            "streams": float(len(self._streams)),
            **self._counters.gauges(),
        }

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of all streams, or of those that changed since the last call."""
        with self._streams.snapshot(incremental=incremental, weights=self.model_id, settings=self._settings()) as (
            state,
            found,
        ):
            for bank in self._banks:
                bank.export([stream.slot for stream in found], state, incremental=incremental)
        return state

    def restore(self, state: State) -> None:
        """Replace all streams by those of a full ``state``."""
        hint = "what waits of a stream fits these weights and options only; resume with the same ones"
        live, found = self._streams.restore(state, weights=self.model_id, settings=self._settings(), hint=hint)
        for bank in self._banks:
            bank.load([stream.slot for stream in found], live)

    def _settings(self) -> str:
        return f"mode {self.options.mode}" + (f", block_cols {self.options.block_cols}" if self._encodes else "")
