"""The streaming operator ``specvqgan``: frames of many streams in, sound for them out, and the tokens that it was made of.

A column of sound is due once the rows that its window waits for are final; columns of all streams that are due are made
together. What a stream gets depends on its rows alone: noise is its own, a window sees what it waited for and nothing that came
later, and everything that changes lies in banks.
"""

# E feature width, N samples

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from connectors import records
from models.hub import weights_folder
from models.specvqgan.codec import bits_of, pack_tokens
from models.specvqgan.config import COLUMN_FRAMES, HOP, RATE, TransformerConfig
from models.specvqgan.loaders import SoundNetworks, load_networks
from models.specvqgan.parts import SMALL_WEIGHTS
from models.specvqgan.transformer import KVCache
from models.uploads import download
from models.weight_files import weights_name
from operators.admission import Admitted, admit_rows
from operators.banks import PoolBank, SlotBank, TailBank, stream_seed
from operators.base import Context, Emitted
from operators.budget import check_budget
from operators.counters import STREAM_COUNTERS, Counters
from operators.event_time import microseconds
from operators.frames import frame_of
from operators.made_rows import MadeRows
from operators.output import OutputRows
from operators.pcm import sound_cells
from operators.specvqgan.config import ROWS_PER_COLUMN, Geometry, SpecVQGANOptions
from operators.specvqgan.declaration import SpecVQGANDeclaration, parts_of
from operators.specvqgan.drawing import Drawing, Turn
from operators.specvqgan.looking import FeatureRing, Look
from operators.specvqgan.rules import (
    CROP_SAMPLES,
    columns_of,
    row_at,
    rows_needed,
    samples_of,
    sound_due,
    window_start,
)
from operators.specvqgan.schemas import OUTPUTS, STATUSES
from operators.specvqgan.streams import FrameStream
from operators.specvqgan.voicing import Voicing
from operators.state import State
from operators.streams import Refusal, Stream, StreamTable

__all__ = ["SpecVQGANOperator"]

_COLUMN = HOP * COLUMN_FRAMES


class SpecVQGANOperator(SpecVQGANDeclaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    clock: Callable[[], float] = staticmethod(time.time)
    """Seconds since 1970; replaced in tests."""

    def __init__(self, options: SpecVQGANOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: SpecVQGANOptions = options
        self.input_schema = self.takes(options)
        device, slots = context.device, options.max_streams
        networks = load_networks(weights_folder(options.checkpoint, SMALL_WEIGHTS), parts_of(options), device)
        transformer, autoencoder, vocoder = networks.transformer, networks.autoencoder, networks.vocoder
        assert transformer is not None and autoencoder is not None and vocoder is not None
        self.model_id = _model_id(networks)
        if options.double(sum(part.numel() for part in transformer.parameters())):
            transformer = transformer.double()
        dtype = next(transformer.parameters()).dtype
        transformer.pack()
        config = transformer.config
        self.geometry = geometry = Geometry.of(options, config, context.name)
        top_k = config.codes // 2 if options.top_k is None else options.top_k
        columns = geometry.longest if geometry.exact else geometry.window
        self._check_memory(networks, config, columns, dtype)
        self._looking = FeatureRing(
            networks.features,
            config.feature_width,
            geometry,
            slots,
            options.batch_frames,
            device,
            compiled=options.compile,
        )
        self._drawing = Drawing(
            transformer,
            slots=slots,
            columns=columns,
            temperature=options.temperature,
            top_k=top_k,
            batch=options.batch_streams,
            device=device,
            compiled=options.compile,
        )
        self.codebook = PoolBank(config.codes, autoencoder.config.code_width, metric="l2", name="codebook", device=device)
        self.codebook.write(autoencoder.codes_KD)
        self.codebook_id = self.codebook.fingerprint()
        banks = Voicing.banks_of(geometry.fade, slots, device)
        self._voicing = Voicing(autoencoder, vocoder, self.codebook, geometry.fade, *banks)
        self._codes = config.codes
        self._settings = f"{geometry}, top_k {top_k}, temperature {options.temperature}, seed {options.seed}"
        self._counters = Counters(
            *STREAM_COUNTERS, "frames", "frames_seen", "frames_behind", "columns", "features_repaired", "models_failed"
        )
        self._gap_us = microseconds(options.max_gap_s)
        self._looks: list[Look] = []
        self._waiting: dict[int, int] = {}
        self._ids: dict[int, str] = {}
        self._rows = self._new_rows()
        self._left = self._new_rows()
        """Of streams that were closed, up to the next ``flush``."""
        self._later: list[tuple[dict[str, Any], str, Tensor]] = []
        """Rows, their column, and what it is made of, until the call ends."""
        self._seen: list[tuple[FrameStream, Tensor]] = []
        """Streams whose frames were looked at, and whether the feature was good, until the call ends."""
        self._fresh: dict[int, list[int]] = {}
        """Slot → places in ``_seen`` of features that no row of sound tells of yet."""
        self._told: list[tuple[dict[str, Any], list[int]]] = []
        """Rows, and places in ``_seen`` of the features that they are the first to tell of."""
        self._key: int | None = None
        self._streams = StreamTable(
            context.name, self._open, options, kind=FrameStream, counters=self._counters, ended=self._end
        )

    def _check_memory(self, networks: SoundNetworks, config: TransformerConfig, columns: int, dtype: torch.dtype) -> None:
        geometry = self.geometry
        faded, frames = Voicing.banks_of(geometry.fade, 1, torch.device("cpu"))
        with torch.device("meta"):
            cache = KVCache.empty(config, 1, dtype=dtype, device="meta").bytes()
        check_budget(
            self.context.name,
            bytes_per_stream=cache
            + SlotBank.bytes_per_slot(FeatureRing.row_specs(config.feature_width), geometry.ring)
            + SlotBank.bytes_per_slot(Drawing.token_specs(), columns)
            + TailBank.bytes_per_slot(FeatureRing.newest_spec(networks.features, config.feature_width), 1)
            + sum(bank.bytes()["device"] for bank in (faded, frames)),
            streams=self.options.max_streams,
            budget=int(self.options.bank_gib * 2**30),
            hint="Lower max_streams, or raise bank_gib.",
        )

    def _new_rows(self) -> dict[str, MadeRows]:
        return {name: MadeRows(name, schema, STATUSES) for name, schema in OUTPUTS.items()}

    def _open(self, stream_id: str, slot: int) -> FrameStream:
        seed = stream_seed(self.options.seed, stream_id, "tokens")
        self._looking.open(slot, seed)
        self._drawing.open(slot, seed)
        self._voicing.release(slot)
        self._ids[slot] = stream_id
        return FrameStream(slot=slot, seed=seed)

    # Frames

    def process(self, batch: pa.RecordBatch) -> list[Emitted]:
        """Take frames in; return the sound and the tokens that are due now, and the frames that cannot be used."""
        records.require(batch, self.input_schema, self.context.name)
        out = OutputRows(batch, OUTPUTS["sound"], STATUSES)
        features = batch.column("feature").to_pylist() if self.options.given_features else None
        times = batch.column("event_time").cast(pa.int64()).to_pylist()

        def read(row: int, stream: FrameStream | None, time_us: int) -> tuple[Tensor | None, str | None]:
            self._key = row
            if features is not None:
                return self._given(features[row])
            image, problem = frame_of(batch, row)
            return None if image is None else self._looking.prepare(image), problem

        def refusal(stream: FrameStream, row: int) -> Refusal | None:
            if not (self.geometry.exact and stream.open and not self._is_gap(stream, times[row])):
                return None
            late = row_at(times[row], stream.origin_us, self.geometry)
            if columns_of(late + 1, self.geometry) <= self.geometry.longest:
                return None
            return Refusal("too_long", f"the stream is longer than {self.options.exact_max_s:g} s (exact_max_s)")

        for frame in admit_rows(
            batch, self._streams, out, read, before_eviction=lambda stream: self._advance(), refusal=refusal
        ):
            self._take(frame)
        self._advance()
        self._key = None
        for stream in self._streams.values():
            stream.marks.clear()
        self._take_sound()
        self._counters.note(out)
        self._counters.add("rejected", out.count("too_long"))
        self._rows["sound"].refused(batch, out)
        return [made for rows in self._rows.values() for made in rows.batches()]

    def _given(self, feature: Sequence[float | None] | None) -> tuple[Tensor | None, str | None]:
        width = self._looking.width
        if feature is None or len(feature) != width:
            found = "no feature" if feature is None else f"{len(feature)} numbers"
            return None, f"the row has {found}; the transformer takes features of {width}"
        return torch.from_numpy(np.array(feature, np.float32)), None

    def _is_gap(self, stream: FrameStream, time_us: int) -> bool:
        return time_us - stream.last_time_us > self._gap_us

    def _take(self, frame: Admitted[FrameStream, Tensor | None]) -> None:
        stream, time_us = frame.stream, frame.time_us
        assert frame.content is not None
        self._counters.add("frames")
        if stream.open and frame.gap_s is not None and frame.gap_s * 1e6 > self._gap_us:
            self._advance()
            self._finish(stream, frame.row, self._rows)
            self._restart(stream)
        if self.options.on_behind != "block" and self._is_behind(stream, frame):
            return
        if not stream.open:
            stream.open, stream.origin_us = True, time_us
        row = row_at(time_us, stream.origin_us, self.geometry)
        if row > stream.row:
            self._note(stream, row, frame.row)
        self._looking.hold(stream.slot, frame.content)

    def _note(self, stream: FrameStream, row: int, key: int) -> None:
        """Note that all rows before ``row`` are final: they show the newest frame."""
        most = max(1, self.geometry.rows // 2)
        start = stream.row
        while start < row:
            room = most - self._waiting.get(stream.slot, 0)
            if room <= 0:
                self._advance()
                continue
            rows = range(start, min(row, start + room))
            self._looks.append(self._looking.look(stream, rows))
            self._waiting[stream.slot] = self._waiting.get(stream.slot, 0) + len(rows)
            start = rows.stop
            stream.marks.append((start, key))
        stream.row = row

    def _is_behind(self, stream: FrameStream, frame: Admitted[FrameStream, Tensor | None]) -> bool:
        """Follow ``on_behind``; return whether a frame is left out."""
        lag_s = self.clock() - frame.time_us / 1e6
        is_behind = lag_s > self.options.max_lag_s
        if self.options.on_behind == "fast":
            stream.fast = is_behind
            return False
        if not is_behind:
            stream.behind = False
            return False
        self._counters.add("frames_behind")
        if not stream.behind:
            self._advance()
            said = f"the clock is {lag_s:.1f} s ahead of this frame, max_lag_s is {self.options.max_lag_s:g}"
            if stream.open:
                self._voice(stream, frame.row, self._rows, samples=None, last=True)
                self._restart(stream)
            stream.behind = True
            self._say(self._rows, frame.row, frame.stream_id, frame.sequence, frame.time_us, "behind", said)
        return True

    # Columns

    def _advance(self) -> None:
        """Look at the frames that wait, then make all columns that are due."""
        looks, self._looks = self._looks, []
        self._waiting.clear()
        if not looks:
            return
        self._look(looks)
        streams = list({look.stream.slot: look.stream for look in looks}.values())
        while turns := [turn for stream in streams if (turn := self._turn(stream, None)) is not None]:
            self._make(turns, self._rows, None)

    def _look(self, looks: Sequence[Look]) -> None:
        """Look at frames. Whether their features are good comes to the host with the sound."""
        seen = self._looking.write(looks)
        self._counters.add("frames_seen", len(seen))
        for one in seen:
            self._fresh.setdefault(one[0].slot, []).append(len(self._seen))
            self._seen.append(one)

    def _turn(self, stream: FrameStream, total: int | None) -> Turn | None:
        """Return how the next column of a stream is made; None where it is not due. ``total``: all columns, at the end."""
        geometry = self.geometry
        if total is None and (geometry.exact or not stream.open):
            return None
        if total is not None and stream.column >= total:
            return None
        start = window_start(stream.column, stream.window, geometry, total=total, fast=stream.fast)
        moved = start != stream.window
        needed = rows_needed(stream.column, start, geometry, moved=moved)
        if total is None and stream.encoded < needed:
            return None
        if moved:
            stream.window, stream.known = start, stream.encoded if total is not None else needed
            stream.lookahead = max(0, stream.known // ROWS_PER_COLUMN - stream.column)
            self._drawing.forget(stream.slot)
        feats_EF = None
        if self._drawing.must_read(stream):
            feats_EF = self._looking.window(stream, start, rows=stream.known, ended=total is not None and moved)
        return Turn(stream, start, feats_EF, greedy=stream.fast)

    def _make(self, turns: Sequence[Turn], rows: Mapping[str, MadeRows], key: int | None, total: int | None = None) -> None:
        """Make the next column of streams, and sound where that is due. ``key``: by default the row that made it due."""
        for turn, good in zip(turns, self._drawing.draw(turns, self._looking.largest), strict=True):
            stream = turn.stream
            if key is None:
                # No earlier than the row that set its window free: rows of a stream come in order.
                needed = max(rows_needed(stream.column - good, turn.start, self.geometry, moved=False), stream.known)
                at = next((row for final, row in stream.marks if final >= needed), 0)
            else:
                at = key
            if not good:
                self._counters.add("models_failed")
                why = "the transformer gave NaN or infinity for this stream; its sound begins anew with the next frame"
                sequence, time_us = self._place(stream, stream.made)
                self._say(rows, at, self._ids[stream.slot], sequence, time_us, "model_failed", why)
                self._restart(stream)
                continue
            self._counters.add("columns")
            if stream.column != total and sound_due(stream.column, stream.voiced, self.geometry):
                self._voice(stream, at, rows, samples=None, last=False)

    def _finish(self, stream: FrameStream, key: int, rows: Mapping[str, MadeRows]) -> None:
        """Make what is left of a take: its newest frame is its last one."""
        if not stream.open:
            return
        self._look([self._looking.look(stream, range(stream.row, stream.row + 1))])
        count = stream.row + 1
        total = columns_of(count, self.geometry)
        while stream.open and (turn := self._turn(stream, total)) is not None:
            self._make([turn], rows, key, total)
        if stream.open:
            self._voice(stream, key, rows, samples=samples_of(count, self.geometry), last=True)

    def _restart(self, stream: FrameStream) -> None:
        """Begin a take with the next frame."""
        stream.restart()
        stream.gap = True
        self._fresh.pop(stream.slot, None)
        self._looking.restart(stream.slot)
        self._drawing.restart(stream.slot)
        self._voicing.release(stream.slot)

    # Sound

    def _voice(self, stream: FrameStream, key: int, rows: Mapping[str, MadeRows], *, samples: int | None, last: bool) -> None:
        """Make the sound of the newest columns. ``samples``: of the whole take, where it ends; None: of all its columns."""
        if not stream.column:
            return
        whole = _COLUMN * stream.column
        samples = whole if samples is None else min(samples, whole)
        columns = stream.column if self.geometry.exact else min(stream.column, self.geometry.window)
        tokens_N = self._drawing.last(stream, columns)
        sound_N = self._voicing.voice(stream, tokens_N, last=last)[: samples - stream.made]
        status = "repaired" if stream.repaired else "gap" if stream.gap else "ok"
        stream.gap = stream.repaired = False
        looks = self._fresh.pop(stream.slot, [])
        stream_id = self._ids[stream.slot]
        if stream.column > stream.told and samples > _COLUMN * stream.told:
            fresh = stream.column - stream.told
            sequence, time_us = self._place(stream, _COLUMN * stream.told)
            row = rows["tokens"].add(
                key,
                stream_id=stream_id,
                sequence=sequence,
                event_time=time_us,
                codebook=self.codebook_id,
                n_samples=samples - _COLUMN * stream.told,
                n_cols=fresh,
                bits=bits_of(self._codes),
                status=status,
            )
            self._later.append((row, "payload", tokens_N[len(tokens_N) - 5 * fresh :]))
            self._told.append((row, looks))
            stream.told = stream.column
        if len(sound_N):
            sequence, time_us = self._place(stream, stream.made)
            row = rows["sound"].add(
                key,
                stream_id=stream_id,
                sequence=sequence,
                event_time=time_us,
                sample_rate=RATE,
                channels=1,
                lookahead_cols=stream.lookahead,
                status=status,
            )
            self._later.append((row, "samples", sound_N))
            self._told.append((row, looks))
            stream.made += len(sound_N)

    def _take_sound(self) -> None:
        """Bring sound and tokens of rows to the host, all at once, and which features were repaired."""
        later, seen, told, fresh = self._later, self._seen, self._told, self._fresh
        self._later, self._seen, self._told, self._fresh = [], [], [], {}
        flags = [torch.stack([good for _, good in seen])] if seen else []
        on_host = download(*(made_N for *_, made_N in later), *flags)
        bad = {place for good_L in on_host[len(later) :] for place in np.flatnonzero(~good_L.numpy()).tolist()}
        self._counters.add("features_repaired", len(bad))
        for row, places in told:
            if bad.intersection(places):
                row["status"] = "repaired"
        for places in fresh.values():
            for place in bad.intersection(places):
                seen[place][0].repaired = True
        for (row, name, _), made_N in zip(later, on_host, strict=False):
            row |= sound_cells(made_N) if name == "samples" else {name: pack_tokens(made_N, self._codes)}

    def _place(self, stream: FrameStream, sample: int) -> tuple[int, int]:
        """Return number and event time of a sample of a take."""
        first = CROP_SAMPLES if self.geometry.exact else 0
        return stream.begins + first + sample, stream.origin_us + round((first + sample) * 1_000_000 / RATE)

    def _say(
        self, rows: Mapping[str, MadeRows], key: int, stream_id: str, sequence: int, time_us: int, status: str, error: str
    ) -> None:
        rows["sound"].add(key, stream_id=stream_id, sequence=sequence, event_time=time_us, status=status, error=error)

    # Ends

    def _end(self, stream_id: str, stream: Stream) -> None:
        assert isinstance(stream, FrameStream)
        rows, key = (self._left, 0) if self._key is None else (self._rows, self._key)
        self._finish(stream, key, rows)
        self._fresh.pop(stream.slot, None)
        self._looking.release(stream.slot)
        self._drawing.release(stream.slot)
        self._voicing.release(stream.slot)

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream. The rest of its sound comes with the next ``flush``."""
        self._streams.close(stream_id)

    def flush(self) -> list[Emitted]:
        """Return what streams that were closed had left."""
        self._take_sound()
        return [made for rows in self._left.values() for made in rows.batches()]

    def metrics(self) -> dict[str, float]:
        """Return bytes, streams, how far sound is behind frames, and counts of the whole run."""
        banks = [self._voicing.faded, self._voicing.frames]
        rows_per_s = self.geometry.rows_per_s
        behind = [stream.row / rows_per_s - _COLUMN * stream.column / RATE for stream in self._streams.values() if stream.open]
        return {
            "bank_bytes": float(
                self._looking.bytes()
                + self._drawing.bytes()
                + self.codebook.bytes()["device"]
                + sum(bank.bytes()["device"] for bank in banks)
            ),
            "streams": float(len(self._streams)),
            "lag_s": max(behind, default=0.0),
            **self._counters.gauges(),
        }

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of all streams, or of those that changed since the last call. Keys and values are read again."""
        with self._streams.snapshot(incremental=incremental, weights=self.model_id, settings=self._settings) as (state, found):
            slots = [stream.slot for stream in found]
            self._looking.export(slots, state, incremental=incremental)
            self._drawing.export(slots, state, incremental=incremental)
            for bank in (self._voicing.faded, self._voicing.frames):
                bank.export(slots, state, incremental=incremental)
        self._looking.mark_clean()
        self._drawing.tokens.mark_clean()
        return state

    def restore(self, state: State) -> None:
        """Replace all streams by those of a full ``state``."""
        hint = "windows hold what these weights and options gave; resume with the same ones"
        live, found = self._streams.restore(state, weights=self.model_id, settings=self._settings, hint=hint)
        slots = [stream.slot for stream in found]
        self._looking.load(slots, live)
        self._drawing.load(slots, live)
        for bank in (self._voicing.faded, self._voicing.frames):
            bank.load(slots, live)
        self._looking.mark_clean()
        self._drawing.tokens.mark_clean()


def _model_id(networks: SoundNetworks) -> str:
    tensors: dict[str, Tensor] = {}
    for name in ("autoencoder", "transformer", "vocoder", "features"):
        network = getattr(networks, name)
        if network is not None:
            tensors |= {f"{name}.{key}": tensor for key, tensor in network.state_dict().items()}
    return weights_name("specvqgan", {}, tensors)
