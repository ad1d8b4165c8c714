"""The streaming operator ``memprompttss``: samples of many streams in, states and segments out, prompts as control rows.

A window is run every ``stride`` samples of a stream: a *tick*. Prompts wait for the next tick of their stream and are applied
together there, before its window, so that what a stream gets depends on the order of its rows and prompts alone, never on how
they were cut into batches, nor on other streams. Windows of many streams go through the network together.
"""

# R rows of a batch, P those that count, N rows of a stream

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from connectors import records
from connectors.errors import RecoveryError
from operators.base import Context, Emitted
from operators.counters import STREAM_COUNTERS, Counters
from operators.event_time import microseconds
from operators.memprompttss.applying import Applier
from operators.memprompttss.config import MemPromptTSSOptions
from operators.memprompttss.declaration import MemPromptTSSDeclaration
from operators.memprompttss.intake import Intake
from operators.memprompttss.jobs import Job, Tick
from operators.memprompttss.memory import PromptBank
from operators.memprompttss.prompts import PromptLimits, read_prompt, ready_us
from operators.memprompttss.revising import Reviser
from operators.memprompttss.rows import Rows
from operators.memprompttss.schemas import PROMPT
from operators.memprompttss.settings import checked, settings_of
from operators.memprompttss.settling import Settler
from operators.memprompttss.streams import SensorStream
from operators.memprompttss.tells import Tells
from operators.memprompttss.timeline import Timeline
from operators.memprompttss.weights import build_network
from operators.memprompttss.windows import WindowRunner
from operators.pending import Pending
from operators.questions import question_rows
from operators.samples import Samples, read_samples
from operators.sampling_rate import forget_rate
from operators.state import State
from operators.streams import EVICTED, NEVER_US, Refusal, StreamTable

__all__ = ["MemPromptTSSOperator"]

Ints = npt.NDArray[np.int64]

_NO_SLOT = Refusal("rejected_prompt", "nothing of this stream has come, and all slots are taken; raise max_streams")


class MemPromptTSSOperator(MemPromptTSSDeclaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    def __init__(self, options: MemPromptTSSOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: MemPromptTSSOptions = options
        config = settings_of(options)
        geometry = self._geometry = checked(options, config, context.name)
        levels, slots = options.granularities, options.max_streams
        self._network = build_network(options, context.device)
        self.model_id = self._network.name
        self._limits = PromptLimits(config.classes, levels, config.context, config.channels)
        self._timeline = Timeline(
            geometry,
            slots=slots,
            channels=config.channels,
            classes=config.classes,
            tokens=(config.patches, config.width),
            granularities=levels,
            device=context.device,
        )
        self._banks = [
            PromptBank(f"memory{level}", slots=slots, capacity=options.capacity, width=config.width, device=context.device)
            for level in levels
        ]
        self._pending = Pending("prompts", options.max_waiting)
        self._tells = Tells(options.max_waiting)
        self._counters = Counters(*STREAM_COUNTERS, "windows", "prompts", "prompts_rejected", "revisions")
        self._applier = Applier(self._network, self._timeline, self._banks, self._pending, geometry, levels, options.max_age_s)
        settler = Settler(self._timeline, geometry, levels, provisional=options.provisional)
        self._runner = WindowRunner(
            self._network,
            self._timeline,
            self._banks,
            self._applier,
            Reviser(self._network, self._timeline, self._banks, settler, geometry, levels),
            settler,
            geometry,
            self._counters,
            pad_short=options.pad_short,
        )
        rate = options if options.rate_hz else dataclasses.replace(options, rate_hz=config.rate_hz)
        self._intake = Intake(self._network, self._timeline, geometry, options, rate, self._counters)
        self._settings = f"{geometry}, granularities {levels}, capacity {options.capacity}"
        self._ended: list[Emitted] = []
        """Rows of streams that were closed, up to the next ``flush``."""
        self._streams = StreamTable(
            context.name, self._open, options, kind=SensorStream, counters=self._counters, ended=self._release
        )

    def _open(self, stream_id: str, slot: int) -> SensorStream:
        self._timeline.open(slot)
        for bank in self._banks:
            bank.open(slot)
        return SensorStream(slot)

    def _release(self, stream_id: str, stream: SensorStream) -> None:
        self._timeline.release(stream.slot)
        for bank in self._banks:
            bank.release(stream.slot)
        self._pending.close(stream_id)
        self._tells.close(stream_id)

    # Samples

    def process(self, batch: pa.RecordBatch) -> list[Emitted]:
        """Take samples in; return states and segments that they settle, and what became of prompts that waited for them."""
        records.require(batch, self.input_schema, self.context.name)
        out = Rows()
        if not batch.num_rows:
            return []
        names = batch.column("stream_id")
        sequence_R = batch.column("sequence").to_numpy(zero_copy_only=False)

        def refuse(row: int, status: str, error: str) -> None:
            time_us = batch.column("event_time").cast(pa.int64())[row].as_py()
            out.sample(row, names[row].as_py(), int(sequence_R[row]), time_us, status, error)
            self._counters.add("late" if status in ("late", "duplicate") else "rejected")

        lateness_us = microseconds(self.options.lateness_s)
        samples = read_samples(batch, self._limits.channels, self._streams, refuse, lateness_us)
        for rows_P, slots_P, returned in self._streams.assign(names, samples.accepted_R):
            jobs = self._jobs(names, samples, rows_P, slots_P)
            for job in jobs:
                if job.stream_id in returned:
                    self._say_reset(out, samples, job, EVICTED)
                self._expire(out, int(job.rows_N[0]), job.stream_id, int(samples.time_us_R[job.rows_N[0]]))
                job.stream.opened_us = 0
            while jobs:
                self._round(out, samples, jobs)
                jobs = [job for job in jobs if job.taken < len(job.rows_N)]
            self._runner.settle()
        return self._tells.joined(out.batches())

    def _jobs(self, names: pa.Array, samples: Samples, rows_P: Ints, slots_P: Ints) -> list[Job]:
        """Return the rows of each stream."""
        order_P = np.argsort(slots_P, kind="stable")
        ends = np.flatnonzero(np.diff(slots_P[order_P])) + 1
        jobs = []
        for rows_N in np.split(rows_P[order_P], ends):
            stream_id = names[int(rows_N[0])].as_py()
            stream = self._streams.get(stream_id)
            assert stream is not None
            cuts: list[int] = []
            if self.options.max_gap_s is not None:
                times = np.maximum.accumulate(np.concatenate([[stream.last_time_us], samples.time_us_R[rows_N]]))
                far = times[1:] > times[:-1] + microseconds(self.options.max_gap_s)
                far[0] &= stream.last_time_us != NEVER_US
                cuts = np.flatnonzero(far).tolist()
            jobs.append(Job(stream_id, stream, rows_N, cuts, np.flatnonzero(samples.late_R[rows_N]).tolist()))
        return jobs

    def _round(self, out: Rows, samples: Samples, jobs: Sequence[Job]) -> None:
        """Take in some rows of each stream, or one that is late, and run the windows that they complete."""
        for job in jobs:
            if job.after_gap():
                self._restart(out, samples, job)
        before = [job.stream.received for job in jobs]
        sizes = [job.take(self._geometry, one_tick=self._applier.waits(job.stream_id, job.slot)) for job in jobs]
        self._runner.make_room(jobs, sizes)
        following = []
        for number, job in enumerate(jobs):
            if job.is_late():
                self._intake.insert(out, samples, job)
            else:
                following.append(number)
        if following:
            self._intake.append(out, samples, [jobs[n] for n in following], np.array([sizes[n] for n in following]))
        window, stride = self._geometry.window, self._geometry.stride
        ticks = []
        for job, size, had in zip(jobs, sizes, before, strict=True):
            start = job.taken
            job.taken += size
            complete = (job.stream.received - window) // stride + 1 if job.stream.received >= window else 0
            for number in range(job.stream.windows, complete):
                row = start + number * stride + window - 1 - had
                ticks.append(Tick(job, number, int(job.rows_N[row]), job.stream.received))
        if ticks:
            self._runner.run(out, ticks)

    # Ends

    def _restart(self, out: Rows, samples: Samples, job: Job) -> None:
        """End what came before a gap, and begin again; the bank stays."""
        key = int(job.rows_N[job.taken])
        gap_s = (int(samples.time_us_R[key]) - job.stream.last_time_us) / 1e6
        self._runner.finish(out, job, key)
        self._timeline.restart(job.slot)
        stream = job.stream
        forget_rate(stream)
        stream.origin += stream.received
        stream.received = stream.windows = 0
        self._say_reset(out, samples, job, f"{gap_s:.3f} s since the last sample, max_gap_s is {self.options.max_gap_s}")

    def _say_reset(self, out: Rows, samples: Samples, job: Job, reason: str) -> None:
        row = int(job.rows_N[job.taken])
        out.sample(row, job.stream_id, int(samples.sequence_R[row]), int(samples.time_us_R[row]), "reset", reason)
        self._counters.add("reset")

    def close_stream(self, stream_id: str) -> None:
        """Settle what is left of a stream, then forget it. Its last rows come with the next ``flush``."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            out = Rows()
            self._runner.finish(out, Job(stream_id, stream, np.zeros(0, np.int64), ()), 0)
            self._applier.drop(out, 0, stream_id, "the stream has ended")
            self._ended += self._tells.joined(out.batches())
        self._streams.close(stream_id)

    def flush(self) -> list[Emitted]:
        """Return the last rows of streams that were closed; apply prompts about streams that have paused.

        Those wait for a tick that may not come: nothing has come since the last flush. Not in an aligned run, whose rows must
        not depend on when a flush comes: there they wait for the tick or the end of the stream.
        """
        ended, self._ended = self._ended, []
        if self.context.aligned:
            return ended
        out = Rows()
        for stream_id in list(self._streams):
            stream = self._streams.get(stream_id)
            assert stream is not None
            came = stream.origin + stream.received
            if came != stream.seen:
                stream.seen = came
                self._streams.changed(stream_id)
            elif stream.windows and self._applier.waits(stream_id, stream.slot):
                self._runner.apply_late(out, Job(stream_id, stream, np.zeros(0, np.int64), ()))
                if self._applier.applied:
                    self._streams.changed(stream_id)
        self._runner.settle()
        return ended + self._tells.joined(out.batches())

    # Prompts

    def control(self, batch: pa.RecordBatch) -> list[Emitted]:
        """Take prompts, which wait for the next tick of their stream. Answers at once those that cannot be used."""
        records.require(batch, PROMPT, self.context.name)
        out = Rows()
        for key, row in enumerate(question_rows(records.complete(batch, PROMPT))):
            self._counters.add("prompts")
            item = read_prompt(row, self._limits)
            refusal = item if isinstance(item, Refusal) else self._take(out, key, row, item)
            if refusal is not None:
                self._refuse_prompt(out, key, row, refusal)
        return out.batches()

    def _take(self, out: Rows, key: int, row: Mapping[str, Any], item: dict[str, Any]) -> Refusal | None:
        """Take a prompt: what stands does so at once, the others wait."""
        stream_id, kind = row["stream_id"], item["kind"]
        if kind == "tell":
            if self._opened(stream_id, item["time_us"]) is None:
                return _NO_SLOT
            told = self._tells.add(stream_id, item["prompt_id"], item["state"], item["granularity"], item["debounce_s"])
            if not told:
                return Refusal("rejected_prompt", f"{self._tells.limit} prompts of kind tell are there already (max_waiting)")
        elif kind != "retract" or not self._tells.withdraw(stream_id, item["target"]):
            return self._wait(stream_id, item)
        self._streams.changed(stream_id)
        keys = {name: row[name] for name in ("stream_id", "sequence", "event_time", "prompt_id")}
        out.event(key, **keys, granularity=item["granularity"], op=kind)
        return None

    def _opened(self, stream_id: str, time_us: int) -> SensorStream | None:
        """Return a stream, a new one where there is room; None where there is none."""
        stream = self._streams.get(stream_id)
        if stream is None and not self._streams.full:
            stream = self._streams.open(stream_id).stream
            stream.opened_us = time_us
        return stream

    def _wait(self, stream_id: str, item: dict[str, Any]) -> Refusal | None:
        stream = self._opened(stream_id, item["time_us"])
        if stream is None:
            return _NO_SLOT
        self._streams.changed(stream_id)
        stream.prompts += 1
        item["order"] = stream.prompts
        if stream.last_time_us != NEVER_US:
            if item["offset_us"] is not None:
                start_us = stream.first_time_us if item["offset_us"] >= 0 else stream.last_time_us
                item["at_us"], item["offset_us"] = start_us + item["offset_us"], None
            elif item["at_us"] is None:
                item["at_us"] = stream.last_time_us
        if not self._pending.add(stream_id, max(ready_us(item), NEVER_US + 1) - 1, item):
            return Refusal("rejected_prompt", f"{self._pending.limit} prompts of this stream wait already (max_waiting)")
        return None

    def _refuse_prompt(self, out: Rows, key: int, row: Mapping[str, Any], refusal: Refusal) -> None:
        out.event(
            key,
            stream_id=row["stream_id"],
            sequence=row["sequence"],
            event_time=row["event_time"],
            granularity=row["granularity"],
            prompt_id=row["prompt_id"],
            op="reject",
            status=refusal.status,
            error=refusal.error,
        )
        self._counters.add("prompts_rejected")

    def advance(self, watermark_us: int) -> list[Emitted]:
        """Refuse prompts about streams of which nothing has come for too long."""
        out = Rows()
        for stream_id in [name for name in self._streams if self._opened_us(name)]:
            if self._expire(out, 0, stream_id, watermark_us):
                self._streams.close(stream_id)
        return out.batches()

    def _opened_us(self, stream_id: str) -> int:
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.opened_us

    def _expire(self, out: Rows, key: int, stream_id: str, time_us: int) -> bool:
        opened_us = self._opened_us(stream_id)
        if not opened_us or time_us <= opened_us + microseconds(self.options.prompt_ttl_s):
            return False
        self._applier.drop(
            out, key, stream_id, f"nothing of this stream came for {self.options.prompt_ttl_s:g} s (prompt_ttl_s)"
        )
        return True

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of everything, or of what changed since the last call."""
        with self._streams.snapshot(incremental=incremental, weights=self.model_id, settings=self._settings) as (
            state,
            streams,
        ):
            slots_N = np.array([stream.slot for stream in streams], np.int64)
            self._timeline.export(slots_N, state, incremental=incremental)
            chosen = torch.from_numpy(slots_N)
            for bank in self._banks:
                bank.export(chosen, state, incremental=incremental)
            self._pending.export(state)
            self._tells.export(state)
        return state

    def restore(self, state: State) -> None:
        """Replace everything by a full ``state``. Raise ``RecoveryError`` where other weights, options or versions made it."""
        if state.streams and "first" not in state.dense:
            raise RecoveryError(
                f"{self.context.name}: the snapshot was written by an earlier version of this operator, which did not keep the "
                "first sample of a stream; finish the run with that version, or start in a new state folder"
            )
        hint = "the memories hold what these weights and options gave, so resume with the same ones"
        live, streams = self._streams.restore(state, weights=self.model_id, settings=self._settings, hint=hint)
        slots_N = np.array([stream.slot for stream in streams], np.int64)
        self._runner.forget()  # of a call that has failed
        for slot in range(self.options.max_streams):
            self._timeline.release(slot)
            for bank in self._banks:
                bank.release(slot)
        self._pending.load(live)
        self._tells.load(live)
        if streams:
            self._timeline.load(slots_N, live)
            for bank in self._banks:
                bank.load(torch.from_numpy(slots_N), live)
        for bank in self._banks:
            bank.mark_clean()

    def metrics(self) -> dict[str, float]:
        """Return bytes, prompts that are remembered and that wait, and counts of the whole run."""
        banks = sum(bank.bytes() for bank in self._banks)
        return {
            "bank_bytes": float(banks + self._timeline.bytes()),
            "streams": float(len(self._streams)),
            "remembered": float(sum(bank.valid_S.sum() for bank in self._banks)),
            "waiting": float(len(self._pending)),
            "standing": float(len(self._tells)),
            **self._counters.gauges(),
        }
