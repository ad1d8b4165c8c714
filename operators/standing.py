"""Questions that stand: asked once, answered anew each time that what they ask about comes into view. And the rule of an edge.

A gate tells from features that an operator has anyway how likely a frame shows what each question is about; a frame costs one
product for all questions of its stream. Whoever answers learns which questions to answer at which frame. Knows no bank and no
schema of data.
"""

# F frames, Q standing questions of a stream, U different texts among them, N streams of a snapshot

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch
from models.standing.matcher import FrameMatcher, encoder_name, frame_vectors, load_matcher
from operators.pending import split_rows
from operators.questions import Question, QuestionOptions, Row
from operators.state import Rows, State
from operators.streams import NEVER_US, Refusal

__all__ = ["Edges", "FrameGate", "Gate", "Look", "Standing", "open_gate"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_TEXTS, _EDGES = "standing", "standing_edges"
_EDGE_COLUMNS = 3


@dataclass(slots=True, eq=False)
class Edges:
    """Q conditions of one stream: for how many rows in succession each has held, when it last did, and whether it is on."""

    run_Q: Ints
    seen_us_Q: Ints
    on_Q: Bools

    @staticmethod
    def of(count: int) -> Edges:
        """Return so many conditions that have never held."""
        return Edges(np.zeros(count, np.int64), np.full(count, NEVER_US, np.int64), np.zeros(count, np.bool_))

    def step(self, time_us: int, holds_Q: Bools, rows: int, debounce_us_Q: Ints) -> Bools:
        """Take a row in; return which conditions rise with it, [Q].

        A condition rises once it has held in ``rows`` rows in succession; it is on from then, until a row comes in which it has
        not held for more than its debounce. Only then can it rise again.
        """
        self.run_Q = np.where(holds_Q, self.run_Q + 1, 0)
        self.on_Q &= holds_Q | (time_us - self.seen_us_Q <= debounce_us_Q)
        risen_Q: Bools = ~self.on_Q & (self.run_Q >= rows)
        self.on_Q |= risen_Q
        self.seen_us_Q = np.where(holds_Q & self.on_Q, time_us, self.seen_us_Q)
        return risen_Q

    def keep(self, kept: Sequence[int]) -> Edges:
        """Return these conditions only."""
        return Edges(self.run_Q[kept], self.seen_us_Q[kept], self.on_Q[kept])

    def joined(self, other: Edges) -> Edges:
        """Return these conditions and others behind them."""
        return Edges.of_table(np.concatenate([self.table(), other.table()]))

    def table(self) -> Ints:
        """Return them as numbers, [Q, 3]."""
        return np.stack([self.run_Q, self.seen_us_Q, self.on_Q.astype(np.int64)], axis=1)

    @staticmethod
    def of_table(table_Q3: Ints) -> Edges:
        """Return what ``table`` was made of."""
        return Edges(table_Q3[:, 0].copy(), table_Q3[:, 1].copy(), table_Q3[:, 2] > 0)


class Gate(Protocol):
    """Tells how likely frames show what texts are about."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return what is compared of each text, [U, E]."""

    def frames(self, features: Sequence[Tensor]) -> Tensor:
        """Return what is compared of each frame, [F, E]."""

    def probabilities(self, frames_FE: Tensor, texts_UE: Tensor) -> npt.NDArray[np.float32]:
        """Return how likely each frame shows it, [F, U], 0 to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameGate:
    """A gate by a trained matcher."""

    matcher: FrameMatcher
    words: Callable[[str], Tensor]
    """A text to the embeddings [n, W] of its tokens."""

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts."""
        return self.matcher.texts([self.words(text) for text in texts])

    @torch.inference_mode()
    def frames(self, features: Sequence[Tensor]) -> Tensor:
        """Encode frames."""
        return self.matcher.frames(frame_vectors(features))

    @torch.inference_mode()
    def probabilities(self, frames_FE: Tensor, texts_UE: Tensor) -> npt.NDArray[np.float32]:
        """Compare each frame with each text."""
        logits_FU = frames_FE @ texts_UE[:, :-1].T + texts_UE[:, -1]
        matched: npt.NDArray[np.float32] = torch.sigmoid(logits_FU).float().cpu().numpy()
        return matched


def open_gate(
    options: QuestionOptions, shipped: Path | None, *, frame_width: int, words_VW: Tensor, words: Callable[[str], Tensor]
) -> FrameGate | None:
    """Return the gate by the matcher that is given, else by the ``shipped`` one; None without one.

    ``frame_width``: numbers of a frame's features; ``words_VW``: the table of ``words``. Raise ``CheckpointMismatch`` for a
    matcher of another model.
    """
    path = shipped if options.standing_matcher is None else Path(options.standing_matcher)
    if path is None:
        return None
    matcher = load_matcher(path, encoders=encoder_name(words_VW)).to(words_VW.device)
    if matcher.config.frame_width != frame_width:
        raise CheckpointMismatch(
            f"{path}: reads frames of {matcher.config.frame_width} numbers, this model makes {frame_width}; train one beside it"
        )
    return FrameGate(matcher, words)


@dataclass(slots=True, eq=False)
class _Stands:
    """The standing questions of one stream."""

    questions: list[Question] = field(default_factory=list)
    edges: Edges = field(default_factory=lambda: Edges.of(0))
    encoded: dict[str, Tensor] = field(default_factory=dict)
    """Each different text as the gate compares it, [E]."""
    texts_UE: Tensor | None = None
    """All of them; None: they have changed."""
    text_Q: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Which of the different texts each question has."""
    debounce_us_Q: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    json: bytes | None = None
    """The questions as they stand in snapshots; None: not made yet."""

    def index(self, gate: Gate, default_us: int) -> None:
        """Take note of what has changed; what is not encoded yet, such as after a restore, is."""
        places: dict[str, int] = {}
        self.text_Q = np.array([places.setdefault(q.text, len(places)) for q in self.questions], np.int64)
        new = [text for text in places if text not in self.encoded]
        known = self.encoded | dict(zip(new, gate.texts(new) if new else (), strict=True))
        self.encoded = {text: known[text] for text in places}
        self.texts_UE = torch.stack(list(self.encoded.values())) if places else None
        self.debounce_us_Q = np.array([q.extra.get("debounce_us", default_us) for q in self.questions], np.int64)


@dataclass(frozen=True, slots=True)
class Look:
    """A frame that standing questions are to be compared with."""

    stream_id: str
    sequence: int
    time_us: int
    features_TC: Tensor


class Standing:
    """The standing questions of all streams of a shard. ``gate`` None: the model cannot tell, and none may stand."""

    def __init__(self, options: QuestionOptions, gate: Gate | None, unknown: Callable[[str], Sequence[str]]) -> None:
        self._options, self._gate, self._unknown = options, gate, unknown
        self._debounce_us = round(options.debounce_s * 1e6)
        self._streams: dict[str, _Stands] = {}

    def __len__(self) -> int:
        return sum(len(stands.questions) for stands in self._streams.values())

    def holds(self, stream_id: str) -> bool:
        """Return whether questions about a stream stand."""
        return stream_id in self._streams

    def problem(self, row: Row) -> Refusal | None:
        """Say why a row with ``standing`` cannot be used, as far as its other columns do not tell."""
        if not row["question_id"]:
            return Refusal("bad_question", "a standing question needs a question_id, by which it can be withdrawn")
        if not row["standing"]:
            return None
        if row["at"] is not None or row.get("at_offset_s") is not None:
            return Refusal("bad_question", "a standing question is about what is to come; leave out at and at_offset_s")
        debounce_s = row.get("debounce_s")
        if debounce_s is not None and not 0 <= debounce_s < 1e11:
            return Refusal("bad_question", f"debounce_s is {debounce_s!r}; it must be 0 or more seconds")
        return None

    def add(self, question: Question, debounce_s: float | None) -> Refusal | None:
        """Let a question stand, in the place of one with the same id; return why it cannot."""
        if self._gate is None:
            return Refusal(
                "bad_question",
                "this checkpoint has no matcher by which to tell when what a standing question asks about is there; train one "
                "and give it as standing_matcher",
            )
        if unknown := list(dict.fromkeys(self._unknown(question.text))):
            return Refusal("bad_question", f"the model does not know the words {', '.join(map(repr, unknown[:5]))}")
        stands = self._streams.get(question.stream_id, _Stands())
        ids = [one.question_id for one in stands.questions]
        if question.question_id not in ids and len(ids) >= self._options.max_standing:
            return Refusal("too_many_waiting", f"{len(ids)} questions about this stream stand already (max_standing)")
        self.withdraw(question.stream_id, question.question_id)
        stands = self._streams.setdefault(question.stream_id, _Stands())
        extra = question.extra if debounce_s is None else {**question.extra, "debounce_us": round(debounce_s * 1e6)}
        stands.questions.append(dataclasses.replace(question, asked_us=question.time_us, extra=extra))
        stands.edges = stands.edges.joined(Edges.of(1))
        stands.texts_UE = stands.json = None
        return None

    def prepare(self) -> None:
        """Encode what has been added, all of it together, so that it takes no time when a frame comes."""
        for stands in self._streams.values():
            if stands.texts_UE is None and self._gate is not None:
                stands.index(self._gate, self._debounce_us)

    def withdraw(self, stream_id: str, question_id: str | None) -> bool:
        """Let a question stand no longer; return whether it did."""
        stands = self._streams.get(stream_id)
        kept = [] if stands is None else [i for i, one in enumerate(stands.questions) if one.question_id != question_id]
        if stands is None or len(kept) == len(stands.questions):
            return False
        if not kept:
            del self._streams[stream_id]
            return True
        stands.questions = [stands.questions[i] for i in kept]
        stands.edges, stands.texts_UE, stands.json = stands.edges.keep(kept), None, None
        return True

    def close(self, stream_id: str) -> None:
        """Forget the questions about a stream."""
        self._streams.pop(stream_id, None)

    def look(self, looks: Sequence[Look | None]) -> dict[int, list[Question]]:
        """Compare frames with what stands for their streams; return by their places which questions to answer at which frame.

        Frames of a stream come in order; None: one that cannot be used. A question has the keys of its frame, and those that
        others have asked in the same words go with it (``also``).
        """
        if not self._streams or self._gate is None:
            return {}
        places: dict[str, list[int]] = {}
        for i, one in enumerate(looks):
            if one is not None and one.stream_id in self._streams:
                places.setdefault(one.stream_id, []).append(i)
        chosen = [i for members in places.values() for i in members]
        if not chosen:
            return {}
        frames_FE = self._gate.frames([looks[i].features_TC for i in chosen])  # type: ignore[union-attr]
        due: dict[int, list[Question]] = {}
        start = 0
        for stream_id, members in places.items():
            stands = self._streams[stream_id]
            if stands.texts_UE is None:
                stands.index(self._gate, self._debounce_us)
            assert stands.texts_UE is not None
            match_FU = self._gate.probabilities(frames_FE[start : start + len(members)], stands.texts_UE)
            start += len(members)
            holds_FU = match_FU >= self._options.match_above
            for f, i in enumerate(members):
                look = looks[i]
                assert look is not None
                holds_Q = holds_FU[f][stands.text_Q]
                risen_Q = stands.edges.step(look.time_us, holds_Q, self._options.standing_frames, stands.debounce_us_Q)
                if risen_Q.any():
                    due[i] = _due(stands, look, np.flatnonzero(risen_Q).tolist(), match_FU[f])
        return due

    # Snapshots

    def export(self, state: State) -> None:
        """Add the questions that stand about the streams of ``state`` to it."""
        texts, tables = [], []
        for name in state.streams:
            stands = self._streams.get(name)
            if stands is not None and stands.json is None:
                stands.json = json.dumps([question.to_json() for question in stands.questions]).encode()
            texts.append(b"" if stands is None or stands.json is None else stands.json)
            tables.append(np.zeros((0, _EDGE_COLUMNS), np.int64) if stands is None else stands.edges.table())
        data_R = torch.from_numpy(np.frombuffer(bytearray().join(texts), np.uint8).copy())
        state.rows[_TEXTS] = Rows.full(torch.tensor([len(text) for text in texts], dtype=torch.int64), data_R)
        table_R3 = torch.from_numpy(np.concatenate([np.zeros((0, _EDGE_COLUMNS), np.int64), *tables]))
        state.rows[_EDGES] = Rows.full(torch.tensor([len(table) for table in tables], dtype=torch.int64), table_R3)

    def load(self, state: State) -> None:
        """Replace all questions by those of a full ``state``; one that an earlier version wrote has none."""
        self._streams = {}
        if not state.streams or _TEXTS not in state.rows:
            return
        for name, text, table in zip(
            state.streams, split_rows(state.rows[_TEXTS]), split_rows(state.rows[_EDGES]), strict=True
        ):
            if len(text):
                questions = [Question(**item) for item in json.loads(text.tobytes())]
                self._streams[name] = _Stands(questions, Edges.of_table(table))


def _due(stands: _Stands, look: Look, risen: Sequence[int], match_U: npt.NDArray[np.float32]) -> list[Question]:
    """Return the questions to answer, each with those that are the same to the model."""
    groups: dict[tuple[Any, ...], list[Question]] = {}
    for q in risen:
        one = stands.questions[q]
        asked = dataclasses.replace(
            one, sequence=look.sequence, time_us=look.time_us, match=float(match_U[stands.text_Q[q]]), extra=_plain(one.extra)
        )
        key = (asked.text, asked.max_tokens, json.dumps(asked.extra, sort_keys=True))
        groups.setdefault(key, []).append(asked)
    return [dataclasses.replace(first, also=tuple(others)) for first, *others in groups.values()]


def _plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if name != "debounce_us"}
