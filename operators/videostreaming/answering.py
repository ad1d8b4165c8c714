"""From questions as text and memories as a reader to answers as text. The same function serves the operator and its answerers.

Knows no bank, no stream id and no Arrow. Changes nothing: the memory of an open clip that a question sees is not kept.
"""

# K clips of a reader, V selected clips, T frames, N tokens per frame, C width of a token, M memory tokens, D width

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from models.videostreaming.answering import Prompt, Shown, answer_prompts
from models.videostreaming.encoding import Clip, encode_clips, encode_questions
from models.videostreaming.loaders import VideoStreaming
from models.videostreaming.selection import similarities, stored_indicator, top_clips
from models.videostreaming.steps import CompiledSteps

__all__ = ["Answering", "ChosenClip", "ClipAnswer", "ClipQuestion", "OpenClip", "ReadableClips", "memory_of"]


class ReadableClips(Protocol):
    """The memories ``first`` to ``below`` of a stream: a BlockReader or a FileReader."""

    @property
    def first(self) -> int:
        """The oldest clip that is there."""

    @property
    def below(self) -> int:
        """One more than the newest that may be seen."""

    def representatives(self, layer: int, /) -> Tensor:
        """Return the indicators, [K, 1, D]; zeros: the clip cannot be selected."""

    def gather(self, layer: int, blocks_R: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return memories [R, 1, M, D] and facts [R, 3]."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenClip:
    """Frames of a clip that is not complete. Times are microseconds from the stream's first frame."""

    features_TNC: Tensor
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class ClipQuestion:
    """A question that can be answered now. Picklable."""

    text: str
    max_tokens: int
    select: int | None = None
    """How many clips; None: as many as the model selects."""
    open: OpenClip | None = None
    newest: int | None = None
    """Answer from so many of the newest clips; None: from those that the question selects."""


@dataclass(frozen=True, slots=True)
class ChosenClip:
    """A clip that an answer was written from. Times are microseconds from the stream's first frame."""

    number: int
    start_us: int
    end_us: int
    similarity: float
    score: float
    """Share of the soft-max over all clips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipAnswer:
    """An answer from memories. Picklable, without tensors."""

    status: str
    error: str | None = None
    text: str = ""
    confidence: float = math.nan
    """Of the answer, 0 to 1; NaN without one."""
    chosen: list[ChosenClip] = field(default_factory=list)
    video_tokens: int = 0
    truncated: bool = False


@dataclass(slots=True, eq=False)
class _Asked:
    """A question on its way."""

    number: int
    """Of the questions asked together."""
    question: ClipQuestion
    clips: ReadableClips
    asked_ids_n: Tensor
    prompt_ids_n: Tensor
    truncated: bool
    seen: _Seen
    chosen: list[ChosenClip] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Seen:
    """What a question sees; the same for all that see the same memories and open clip, so it is read and encoded once."""

    clips: ReadableClips
    open: OpenClip | None
    newest_MD: Tensor | None
    open_memory_MD: Tensor | None = None
    open_indicator_D: Tensor | None = None
    stored_KD: Tensor | None = None
    """Indicators of all clips, the open one's last."""
    rows: dict[tuple[int, ...], list[tuple[int, int, Shown]]] = field(default_factory=dict)
    """Of chosen places: start, end and memory of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Answering:
    """A model that answers, and from how much."""

    ready: VideoStreaming
    max_question_tokens: int
    frame_tokens: int
    """Tokens per frame."""
    compiled: CompiledSteps | None = None

    @torch.inference_mode()
    def __call__(self, questions: Sequence[ClipQuestion], clips: Sequence[ReadableClips]) -> list[ClipAnswer]:
        """Answer questions together, ``questions[i]`` from ``clips[i]``."""
        answers: list[ClipAnswer | None] = [None] * len(questions)
        asked = []
        seen: dict[tuple[int, int], _Seen] = {}
        for i, (question, reader) in enumerate(zip(questions, clips, strict=True)):
            key = (id(reader), id(question.open))
            if key not in seen:
                seen[key] = _Seen(reader, question.open, memory_of(reader))
            one = self._read(i, question, seen[key])
            if isinstance(one, _Asked):
                asked.append(one)
            else:
                answers[i] = one
        if asked:
            self._encode_open(asked)
            self._select(asked)
            for one, answer in zip(asked, self._write(asked), strict=True):
                answers[one.number] = answer
        return [answer for answer in answers if answer is not None]

    def _read(self, number: int, question: ClipQuestion, seen: _Seen) -> _Asked | ClipAnswer:
        """Return a question as tokens, or why it cannot be answered."""
        clips = seen.clips
        ready, most = self.ready, self.max_question_tokens
        asked_ids, prompt_ids = ready.asked_ids(question.text), ready.prompt_ids(question.text)
        if not len(asked_ids):
            return ClipAnswer(status="bad_question")
        if clips.below == clips.first and question.open is None:
            return ClipAnswer(status="no_video")
        if question.select is not None:
            longest = self.most_clips(len(prompt_ids[-most:]) + question.max_tokens)
            if not 1 <= question.select <= longest:
                reason = f"select_clips is {question.select}; it must be 1 to {longest}, what the model can read"
                return ClipAnswer(status="bad_question", error=reason)
        truncated = len(asked_ids) > most or len(prompt_ids) > most
        return _Asked(number, question, clips, asked_ids[-most:], prompt_ids[-most:], truncated, seen)

    def most_clips(self, text_tokens: int) -> int:
        """Return how many full memories the answering model can read beside so much text."""
        ready = self.ready
        positions = getattr(ready.model.language_model.config, "max_position_embeddings", None) or 1 << 30
        each = ready.config.memory_tokens + len(ready.shown_ids(99_999_999.9, 99_999_999.9))
        return int((positions - len(ready.prefix_ids()) - text_tokens) // each)

    def _encode_open(self, asked: Sequence[_Asked]) -> None:
        """Encode what is open of the clips that questions see, each behind the newest memory."""
        ready = self.ready
        clips: list[Clip] = []
        groups: list[list[_Seen]] = []  # those of other processes come one by one, however alike they are
        for seen in {id(one.seen): one.seen for one in asked}.values():
            part = seen.open
            if part is None:
                continue
            time_ids = ready.time_ids(part.start_us / 1e6, part.end_us / 1e6, first=seen.clips.below == 0)
            clip = Clip(part.features_TNC, time_ids, seen.newest_MD)
            same = next((place for place, other in enumerate(clips) if _equal(clip, other)), None)
            if same is None:
                clips.append(clip)
                groups.append([seen])
            else:
                groups[same].append(seen)
        for group, encoded in zip(groups, encode_clips(ready.model, clips) if clips else [], strict=True):
            if bool(encoded.memory_MD.isfinite().all() & encoded.indicator_D.isfinite().all()):
                indicator_D = stored_indicator(encoded.indicator_D, ready.config.similarity)
                for seen in group:
                    seen.open_memory_MD = seen.newest_MD = encoded.memory_MD
                    seen.open_indicator_D = indicator_D

    def _select(self, asked: Sequence[_Asked]) -> None:
        """Compare all clips with each question and take up the best (paper section 3.2)."""
        model, config = self.ready.model, self.ready.config
        indicators = encode_questions(model, [one.seen.newest_MD for one in asked], [one.asked_ids_n for one in asked])
        for one, indicator_D in zip(asked, indicators, strict=True):
            stored_KD = self._stored(one.seen)
            scores_K = similarities(indicator_D, stored_KD, config.similarity)
            suspects = (scores_K == 0).nonzero().flatten()  # an indicator of zeros; looking at all of them costs a pass
            scores_K[suspects[(stored_KD[suspects] == 0).all(dim=1)]] = -torch.inf
            newest = one.question.newest
            if newest is not None:
                scores_K[: max(len(scores_K) - newest, 0)] = -torch.inf
            places = top_clips(scores_K, newest or one.question.select or config.select_clips).tolist()
            if config.include_newest and len(scores_K) - 1 not in places and bool(scores_K[-1] > -torch.inf):
                places.append(len(scores_K) - 1)
            share_K = torch.softmax(model.sim_scale.float() * scores_K, dim=0)
            chosen = zip(places, scores_K[places].tolist(), share_K[places].tolist(), self._rows(one.seen, places), strict=True)
            for place, score, share, (start, end, shown) in chosen:
                one.chosen.append(ChosenClip(one.seen.clips.first + place, start, end, score, share))
                one.shown.append(shown)

    def _stored(self, seen: _Seen) -> Tensor:
        """Return the indicators of all clips, [K, D]."""
        if seen.stored_KD is None:
            stored_KD = seen.clips.representatives(0)[:, 0].to(self.ready.model.device)
            opened = [] if seen.open_indicator_D is None else [seen.open_indicator_D[None]]
            seen.stored_KD = torch.cat((stored_KD, *opened))
        return seen.stored_KD

    def _rows(self, seen: _Seen, places: Sequence[int]) -> list[tuple[int, int, Shown]]:
        """Read the memories at these places, ascending; the one behind all that are stored is that of the open clip."""
        key = tuple(places)
        if key not in seen.rows:
            first, stored = seen.clips.first, seen.clips.below - seen.clips.first
            kept = [first + place for place in places if place < stored]
            memories_V1MD, facts_V3 = seen.clips.gather(0, torch.tensor(kept, dtype=torch.int64))
            rows: list[tuple[int, int, Tensor]] = [
                (start, end, memory_1MD[0, :tokens])
                for memory_1MD, (start, end, tokens) in zip(memories_V1MD, facts_V3.tolist(), strict=True)
            ]
            if len(kept) < len(places) and seen.open is not None and seen.open_memory_MD is not None:
                rows.append((seen.open.start_us, seen.open.end_us, seen.open_memory_MD))
            seen.rows[key] = [
                (start, end, Shown(self.ready.shown_ids(start / 1e6, end / 1e6), memory_MD)) for start, end, memory_MD in rows
            ]
        return seen.rows[key]

    def _write(self, asked: Sequence[_Asked]) -> list[ClipAnswer]:
        """Let the answering model read memories and questions, and write."""
        ready = self.ready
        written = [one for one in asked if one.chosen]
        prefix_ids = ready.prefix_ids()
        prompts = [Prompt(prefix_ids, one.shown, one.prompt_ids_n) for one in written]
        limits = [one.question.max_tokens for one in written]
        texts: dict[int, tuple[str, float]] = {}
        if written:
            tokens, confidences = answer_prompts(ready.model, prompts, limits, ready.end_tokens, compiled=self.compiled)
            for one, said, confidence in zip(written, tokens, confidences, strict=True):
                texts[one.number] = (ready.tokenizer.decode(said), confidence)
        unusable = ClipAnswer(status="no_video", error="no clip that this question may see has a memory of finite numbers")
        return [
            ClipAnswer(
                status="ok",
                text=texts[one.number][0],
                confidence=texts[one.number][1],
                chosen=one.chosen,
                video_tokens=sum(len(shown.memory_MD) for shown in one.shown),
                truncated=one.truncated,
            )
            if one.number in texts
            else unusable
            for one in asked
        ]


def _equal(clip: Clip, other: Clip) -> bool:
    """Return whether two clips are the same to the encoder."""
    if (clip.memory_MD is None) != (other.memory_MD is None) or not torch.equal(clip.time_ids_n, other.time_ids_n):
        return False
    if not torch.equal(clip.features_TNC, other.features_TNC):
        return False
    return clip.memory_MD is None or other.memory_MD is None or torch.equal(clip.memory_MD, other.memory_MD)


def memory_of(clips: ReadableClips, tokens: int | None = None) -> Tensor | None:
    """Return the newest memory [M, D] of a reader; None where there is none. ``tokens``: M, where the host knows it."""
    if clips.below == clips.first:
        return None
    memory_11MD, facts_13 = clips.gather(0, torch.tensor([clips.below - 1]))
    tokens = int(facts_13[0, 2]) if tokens is None else tokens
    return memory_11MD[0, 0, :tokens] if tokens else None
