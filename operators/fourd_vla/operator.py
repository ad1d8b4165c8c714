"""The streaming operator ``fourd_vla``: RGB-D frames of many streams in, the few past frames to see now (and an action) out.

Batches admitted frames over streams, encodes each once, decides when a stream starts over (episode, gap, camera), and keeps
snapshots. What a stream gets never depends on the other streams of a batch, except that ``on_streams_full: evict`` may end its
memory.
"""

# B streams of a round, R rows of a batch, K frames kept

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from connectors import records
from models.uploads import download, upload, upload_values
from operators.admission import Admitted, admit_rows
from operators.banks import RowSpec, SlotBank
from operators.base import Context
from operators.budget import check_budget
from operators.counters import STREAM_COUNTERS, Counters
from operators.fourd_vla.acting import Acting, meters
from operators.fourd_vla.config import FourDVLAOptions, Given
from operators.fourd_vla.declaration import FourDVLADeclaration
from operators.fourd_vla.frames import RgbdImage, RgbdRows
from operators.fourd_vla.rules import HistoryBank, Selected
from operators.fourd_vla.schemas import STATUSES, Selections, output_schema
from operators.fourd_vla.streams import FourDVLAStream
from operators.fourd_vla.weights import build_encoder, build_policy, model_id
from operators.output import OutputRows
from operators.rounds import rounds
from operators.state import State
from operators.streams import StreamTable

__all__ = ["FourDVLAOperator"]


@dataclass(slots=True)
class _Job:
    """One frame that goes into the bank."""

    row: int
    stream_id: str
    slot: int
    sequence: int
    time_us: int
    image: RgbdImage
    starts_over: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Round:
    """What a round of frames came to, still on the device."""

    rows_B: npt.NDArray[np.int64]
    good_B: Tensor
    """The frame went into the bank."""
    selected: Selected
    acted_B8: Tensor | None

    def whole(self) -> Tensor:
        """Return the whole numbers that are said, [B, 2 + 3 K]."""
        said = self.selected
        alone_B2 = torch.stack([self.good_B.long(), said.count_B], dim=1)
        return torch.cat([alone_B2, said.sequence_BK, said.time_us_BK, said.offset_BK], dim=1)

    def parts(self) -> Tensor:
        """Return the others, [B, K + 2]."""
        said = self.selected
        return torch.cat([said.similarity_BK, torch.stack([said.coverage_B, said.worst_B], dim=1)], dim=1)


@dataclass(slots=True)
class _Call:
    """One call of ``process``: what became of its rows, and the frames that wait to be encoded."""

    out: OutputRows
    said: Selections
    began_s: float
    jobs: list[_Job] = field(default_factory=list)
    rounds: list[_Round] = field(default_factory=list)


class FourDVLAOperator(FourDVLADeclaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    def __init__(self, options: FourDVLAOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: FourDVLAOptions = options
        self.input_schema = self.takes(options)
        self.output_schema = output_schema(acts=options.mode == "act")
        policy = build_policy(options, context.name, context.device) if options.mode == "act" else None
        self._encoder = build_encoder(options, context.device) if policy is None else None
        self._acting = None if policy is None else Acting(policy, context.device)
        self.model_id = model_id(self._encoder, policy)
        rows = self._acting.rows if self._acting is not None else {"feature": RowSpec((self._feature_size(),))}
        unbounded = options.horizon == "unbounded"
        capacity = HistoryBank.capacity(options.window, options.keep, unbounded)
        check_budget(
            context.name,
            bytes_per_stream=SlotBank.bytes_per_slot(
                HistoryBank.specs(rows, options.window, options.keep, unbounded), capacity
            ),
            streams=options.max_streams,
            budget=int(options.bank_gib * 2**30),
            hint="Lower max_streams or window, choose dtype=bfloat16, or raise bank_gib",
        )
        self.history = HistoryBank(
            slots=options.max_streams,
            window=options.window,
            keep=options.keep,
            sampling=options.sampling,
            unbounded=unbounded,
            rows=rows,
            device=context.device,
        )
        self._settings = f"{options.sampling}, window {options.window}, keep {options.keep}, horizon {options.horizon}"
        self._counters = Counters(*STREAM_COUNTERS)
        self._streams = StreamTable(
            context.name,
            self._open,
            options,
            kind=FourDVLAStream,
            counters=self._counters,
            ended=lambda stream_id, stream: self.history.release(stream.slot),
        )

    def _feature_size(self) -> int:
        if self._encoder is not None:
            return self._encoder.size
        assert isinstance(self.options.features, Given)
        return self.options.features.size

    def _open(self, stream_id: str, slot: int) -> FourDVLAStream:
        self.history.open(slot)
        return FourDVLAStream(slot)

    # Rows

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Choose the history of every frame of the batch, and act on it. One row out per row in."""
        records.require(batch, self.input_schema, self.context.name)
        reader = RgbdRows(
            batch,
            feature_size=self._feature_size() if self._acting is None and self._encoder is None else None,
            needs_camera=self._acting is not None,
            state_dim=self._acting.model.config.state_dim if self._acting is not None else 0,
        )
        call = _Call(
            OutputRows(batch, self.output_schema, STATUSES), Selections(batch.num_rows, self.history.keep), time.perf_counter()
        )

        def read(row: int, stream: FourDVLAStream | None, time_us: int) -> tuple[RgbdImage, str | None]:
            image, problem = reader.read(row)
            return image, problem or self._problem(image, stream, time_us)

        def before_eviction(stream: FourDVLAStream) -> None:
            if any(job.slot == stream.slot for job in call.jobs):
                self._run(call)  # the rows of that stream come before its end

        for frame in admit_rows(batch, self._streams, call.out, read, before_eviction=before_eviction):
            starts_over = self._starts_over(frame, call.out)
            frame.stream.note(frame.content)
            call.said.valid_depth_R[frame.row] = self._valid_depth(frame.content) if reader.has_depth else np.nan
            if frame.content.feature_D is None:
                call.said.reference_R[frame.row] = frame.content.pose_16 is not None
            call.jobs.append(
                _Job(frame.row, frame.stream_id, frame.stream.slot, frame.sequence, frame.time_us, frame.content, starts_over)
            )
            if len(call.jobs) >= self.options.batch_frames and frame.content.feature_D is None:
                self._run(call)
        self._run(call)
        self._tell(call)
        self._counters.note(call.out)
        return call.out.batches(call.said.columns(model_id=self.model_id if self._acting is not None else None))

    def _problem(self, image: RgbdImage, stream: FourDVLAStream | None, time_us: int) -> str | None:
        """Say why a good frame does not fit its stream or the policy."""
        if self._acting is not None and not (image.instruction or self.options.instruction):
            return "there is no instruction: the row has none in a column instruction, and the option instruction is not set"
        if stream is None or not stream.has_frames or image.feature_D is not None:
            return None
        episode, reasons = self._reasons(stream, image, stream.gap_s(time_us))
        if episode is not None or reasons:
            return None
        if stream.in_world != (image.pose_16 is not None):
            has, had = ("no pose", "have one") if stream.in_world else ("a pose", "have none")
            return f"the row has {has} and the stream's frames before it {had}; their coordinates must not be mixed"
        return None

    def _reasons(self, stream: FourDVLAStream, image: RgbdImage, gap_s: float | None) -> tuple[str | None, list[str]]:
        """Return why an episode begins with a frame (None: none does), and why else the stream starts over with it."""
        reasons = []
        max_gap_s = self.options.max_gap_s
        if max_gap_s is not None and gap_s is not None and gap_s > max_gap_s:
            reasons.append(f"{gap_s:.3f} s since the last frame, max_gap_s is {max_gap_s}")
        if self.options.on_camera_change == "reset" and (change := stream.camera_change(image)):
            reasons.append(change)
        return stream.begins_episode(image), reasons

    def _starts_over(self, frame: Admitted[FourDVLAStream, RgbdImage], out: OutputRows) -> bool:
        """Tell whether the stream's memory is forgotten before this frame, and say why."""
        if not frame.stream.has_frames:
            return False
        episode, reasons = self._reasons(frame.stream, frame.content, frame.gap_s)
        if episode is not None:
            out.set(frame.row, "new_episode", episode)
        elif reasons:
            out.set(frame.row, "reset", "; ".join(reasons))
        return bool(reasons) or episode is not None

    def _valid_depth(self, image: RgbdImage) -> float:
        if image.depth_HW is None:
            return 0.0
        return float(meters(image, self.options.depth_max_m, torch.device("cpu"))[1].float().mean())

    # Frames

    def _run(self, call: _Call) -> None:
        """Take the frames that wait: encoded by size all at once, then in rounds, one frame of each stream."""
        jobs, call.jobs = call.jobs, []
        if not jobs:
            return
        encoded = self._encode(jobs)
        good_J = encoded["feature"].isfinite().all(1)
        device = self.context.device
        facts_J3 = upload_values([(job.slot, job.sequence, job.time_us) for job in jobs], device)
        for members in rounds(np.array([job.slot for job in jobs])):
            resets = [jobs[i].slot for i in members if jobs[i].starts_over]
            if resets:
                self.history.clear(resets)
            index_B = upload_values(members, device)
            slots_B, sequence_B, time_us_B = facts_J3[index_B].unbind(1)
            good_B = good_J[index_B]
            chosen = [jobs[i] for i in members]
            most_B = self.history.admit([job.slot for job in chosen])
            self.history.write(
                slots_B, {name: values[index_B] for name, values in encoded.items()}, sequence_B, time_us_B, good_B
            )
            selected = self.history.select(slots_B, good_B)
            acted = None if self._acting is None else self._act(self._acting, chosen, slots_B, time_us_B, selected, most_B)
            call.rounds.append(_Round(np.array([job.row for job in chosen]), good_B, selected, acted))

    def _encode(self, jobs: Sequence[_Job]) -> dict[str, Tensor]:
        """Return what the bank keeps of frames of any sizes."""
        device = self.context.device
        if self._acting is None and self._encoder is None:
            given = [job.image.feature_D for job in jobs if job.image.feature_D is not None]
            return {"feature": upload_values(np.stack(given), device)}
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, job in enumerate(jobs):
            sizes.setdefault((job.image.height, job.image.width), []).append(i)
        parts = []
        for members in sizes.values():
            images = [jobs[i].image for i in members]
            if self._acting is not None:
                parts.append(self._acting.look(images))
            else:
                assert self._encoder is not None
                rgb_BHW3 = torch.from_numpy(np.stack([image.color for image in images if image.color is not None]))
                with torch.inference_mode():
                    parts.append({"feature": self._encoder(upload(rgb_BHW3, device))})
        if len(parts) == 1:
            return parts[0]
        order = upload_values(np.argsort([i for members in sizes.values() for i in members]), device)
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}

    def _act(
        self,
        acting: Acting,
        jobs: Sequence[_Job],
        slots_B: Tensor,
        time_us_B: Tensor,
        selected: Selected,
        most_B: Sequence[int],
    ) -> Tensor:
        """Return actions and the gripper's probability, [B, 8], for a round of frames."""
        options, device = self.options, self.context.device
        offset_BK = selected.offset_BK
        if options.nominal_rate is not None:
            offset_BK = ((time_us_B[:, None] - selected.time_us_BK) * (options.nominal_rate / 1e6)).round().long()
        tokens_BKLD = self.history.bank.rows["tokens"][slots_B[:, None], selected.position_BK]
        texts = [acting.instruction(job.image.instruction or options.instruction or "") for job in jobs]
        has_state = bool(acting.model.config.state_dim)
        states = upload_values([job.image.state for job in jobs], device) if has_state else None
        return acting.act(tokens_BKLD, offset_BK, most_B, texts, states, selected.count_B)

    def _tell(self, call: _Call) -> None:
        """Bring everything to the host, the only moment at which it waits for the device, and note it."""
        made, call.rounds = call.rounds, []
        if not made:
            return
        acted = [one.acted_B8 for one in made if one.acted_B8 is not None]
        parts = [[one.whole() for one in made], [one.parts() for one in made], acted]
        whole_B, parts_B, *acted_B8 = (part.numpy() for part in download(*(torch.cat(some) for some in parts if some)))
        rows_B, said, K = np.concatenate([one.rows_B for one in made]), call.said, self.history.keep
        good_B = whole_B[:, 0] > 0
        for row in rows_B[~good_B].tolist():
            call.out.set(row, "rejected_corrupt", "the feature of the frame is not finite")
        rows_B, whole_B, parts_B = rows_B[good_B], whole_B[good_B, 1:], parts_B[good_B]
        said.count_R[rows_B] = whole_B[:, 0]
        for n, target in enumerate((said.sequence_RK, said.time_us_RK, said.offset_RK)):
            target[rows_B] = whole_B[:, 1 + n * K : 1 + (n + 1) * K]
        said.similarity_RK[rows_B], said.coverage_R2[rows_B] = parts_B[:, :K], parts_B[:, K : K + 2]
        if acted_B8:
            said.action_R7[rows_B], said.gripper_R[rows_B] = acted_B8[0][good_B, :7], acted_B8[0][good_B, 7]
            said.latency_ms_R[rows_B] = (time.perf_counter() - call.began_s) * 1000

    def _slots(self, slots: list[int]) -> Tensor:
        return upload_values(slots, self.context.device, torch.int64)

    # Streams

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream and free its slot."""
        self._streams.close(stream_id)

    def metrics(self) -> dict[str, float]:
        """Return bank bytes, streams with a slot and counters of the whole run."""
        return {
            "bank_bytes": float(sum(self.history.bank.bytes().values())),
            "streams": float(len(self._streams)),
            **self._counters.gauges(),
        }

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of all streams, or of those that changed since the last call with the frames that changed."""
        with self._streams.snapshot(incremental=incremental, weights=self.model_id, settings=self._settings) as (
            state,
            streams,
        ):
            self.history.bank.export(self._slots([stream.slot for stream in streams]), state, incremental=incremental)
        self.history.bank.mark_clean()
        return state

    def restore(self, state: State) -> None:
        """Replace all streams by those of a full ``state``."""
        hint = "the bank holds what these weights and options gave, so resume with the same ones"
        live, streams = self._streams.restore(state, weights=self.model_id, settings=self._settings, hint=hint)
        if streams:
            self.history.load([stream.slot for stream in streams], live)
        self.history.bank.mark_clean()
