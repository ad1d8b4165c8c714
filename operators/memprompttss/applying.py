"""At a tick: the prompts that wait for it, and the remembered ones whose context is complete now, all encoded together."""

# R prompts, T samples of a context, C channels, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.event_time import microseconds
from operators.memprompttss.config import Geometry
from operators.memprompttss.jobs import Tick
from operators.memprompttss.memory import NEVER_SAID, PromptBank, Said
from operators.memprompttss.prompts import Item, places
from operators.memprompttss.quality import MISSING
from operators.memprompttss.rows import Rows
from operators.memprompttss.timeline import Timeline
from operators.memprompttss.weights import Network
from operators.pending import Pending

__all__ = ["Applier", "Causes"]

Floats = npt.NDArray[np.float32]

Causes = dict[tuple[int, int], list[str]]
"""(number of the tick, level) → prompts that changed the bank there."""


@dataclass(slots=True)
class _Step:
    """One thing to do with a bank, in order."""

    tick: int
    level: int
    item: Item
    said: Said | None = None
    context: int = -1
    """Which of the encoded contexts."""
    place: int = -1
    """Of a prompt that is encoded again."""
    refusal: str | None = None


@dataclass(slots=True)
class _Work:
    steps: list[_Step] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    contexts: list[Floats] = field(default_factory=list)

    def encode(self, said: Said, context_TC: Floats) -> int:
        self.said.append(said)
        self.contexts.append(context_TC)
        return len(self.said) - 1


class Applier:
    """Writes prompts into banks."""

    def __init__(
        self,
        network: Network,
        timeline: Timeline,
        banks: Sequence[PromptBank],
        pending: Pending,
        geometry: Geometry,
        granularities: Sequence[int],
        max_age_s: float | None,
    ) -> None:
        self._network, self._timeline, self._banks, self._pending = network, timeline, banks, pending
        self._geometry, self._granularities = geometry, list(granularities)
        self._max_age_us = None if max_age_s is None else microseconds(max_age_s)
        self.applied = False
        """The last ``apply`` has done something."""

    def waits(self, stream_id: str, slot: int) -> bool:
        """Return whether prompts of a stream wait for a tick, or may be too old at one."""
        if self._pending.holds(stream_id) or any(bank.provisional_S[slot] for bank in self._banks):
            return True
        return self._max_age_us is not None and any(bank.oldest_us_S[slot] != NEVER_SAID for bank in self._banks)

    def apply(self, out: Rows, ticks: Sequence[Tick]) -> Causes:
        """Apply what waits for these ticks; return what changed."""
        work, self.applied = _Work(), False
        for number, tick in enumerate(ticks):
            self._expire(work, number, tick)
            if tick.job.stream.received >= self._geometry.context:
                self._reencode(work, number, tick)
                self._collect(work, number, tick)
        if not work.steps:
            return {}
        self.applied = True
        tokens_RD = None
        if work.said:
            context_RTC = np.stack(work.contexts)
            tokens_RD = self._network.remember(PromptBank.prompts(work.said), context_RTC)
        causes: Causes = {}
        for step in work.steps:
            token_D = None if tokens_RD is None or step.context < 0 else tokens_RD[step.context]
            if self._do(out, ticks[step.tick], step, token_D):
                caused = causes.setdefault((step.tick, step.level), [])
                name = step.item["prompt_id"]
                if name not in caused:
                    caused.append(name)
        return causes

    def drop(self, out: Rows, key: int, stream_id: str, reason: str) -> None:
        """Refuse everything of a stream that still waits."""
        for item in self._pending.close(stream_id):
            self._event(out, key, stream_id, item, "reject", refusal=reason)

    # What there is to do

    def _expire(self, work: _Work, number: int, tick: Tick) -> None:
        """Note the prompts that are too old."""
        if self._max_age_us is None:
            return
        for level, bank in enumerate(self._banks):
            for place, prompt_id in bank.aged(tick.job.slot, tick.job.stream.last_time_us - self._max_age_us):
                work.steps.append(_Step(number, level, self._item_of(tick, prompt_id, level, "expire"), place=place))

    def _reencode(self, work: _Work, number: int, tick: Tick) -> None:
        stream = tick.job.stream
        for level, bank in enumerate(self._banks):
            if not bank.provisional_S[stream.slot]:
                continue
            for place, said in bank.waiting(stream.slot):
                at = said.position - stream.origin
                if at < 0:  # before a gap: what it waited for will not come
                    bank.settle(stream.slot, [place])
                    continue
                start = at - self._geometry.context // 2
                if start + self._geometry.context > stream.received:
                    continue
                context, refusal = self._context(tick, at)
                if refusal is not None:
                    bank.settle(stream.slot, [place])
                    continue
                item = self._item_of(tick, said.prompt_id, level, "reencode")
                work.steps.append(_Step(number, level, item, said, work.encode(said, context), place))

    def _collect(self, work: _Work, number: int, tick: Tick) -> None:
        stream, stream_id = tick.job.stream, tick.job.stream_id
        items = self._pending.due(stream_id, stream.last_time_us + 1)
        if not items:
            return
        oldest = self._timeline.oldest(stream.received)
        slot_N, at_N = np.full(stream.received - oldest, stream.slot), np.arange(oldest, stream.received)
        time_us_N = self._timeline.get("time_us", slot_N, at_N).astype(np.int64)
        for item in sorted(items, key=lambda one: one["order"]):
            level = self._granularities.index(item["granularity"])
            if item["kind"] in ("retract", "pin", "reset"):
                work.steps.append(_Step(number, level, item))
                continue
            if item["context"] is not None:
                said = self._said(item, -1 - item["order"], provisional=False)
                given = np.array(item["context"], np.float32).reshape(self._geometry.context, -1)
                step = _Step(number, level, item, said, work.encode(said, self._network.standardize(given)))
                work.steps.append(step)
                continue
            about = places(item, time_us_N, oldest, self._geometry.context, stream.first_time_us)
            if about.refusal is not None:
                work.steps.append(_Step(number, level, item, refusal=about.refusal))
            for at in about.samples:
                context, refusal = self._context(tick, at)
                if refusal is not None:
                    work.steps.append(_Step(number, level, item, refusal=refusal))
                    continue
                behind = at - self._geometry.context // 2 + self._geometry.context > stream.received
                said = self._said(item, stream.origin + at, provisional=behind)
                work.steps.append(_Step(number, level, item, said, work.encode(said, context)))

    def _context(self, tick: Tick, at: int) -> tuple[Floats, str | None]:
        """Return the samples around one, moved so that all of them are there; or why they cannot be used."""
        stream, length = tick.job.stream, self._geometry.context
        start = min(at - length // 2, stream.received - length)
        start = max(start, self._timeline.oldest(stream.received))
        slot_T, at_T = np.full(length, stream.slot), np.arange(start, start + length)
        if (self._timeline.get("quality", slot_T, at_T) == MISSING).any():
            return np.zeros(0, np.float32), "a channel has no number around it for more than max_hold samples"
        return self._timeline.get("values", slot_T, at_T).astype(np.float32), None

    @staticmethod
    def _said(item: Item, position: int, *, provisional: bool) -> Said:
        return Said(
            prompt_id=item["prompt_id"],
            position=position,
            kind=item["type"],
            state=item["state"],
            boundary=item["boundary"],
            incorrect=item["incorrect"],
            pinned=item["pinned"],
            provisional=provisional,
            order=item["order"],
            said_us=item["time_us"],
        )

    def _item_of(self, tick: Tick, prompt_id: str, level: int, kind: str) -> Item:
        """Return what stands for a prompt whose control row is long past: its id, and the newest sample."""
        one = np.array([tick.job.slot]), np.array([tick.job.stream.received - 1])
        return {
            "prompt_id": prompt_id,
            "granularity": self._granularities[level],
            "sequence": int(self._timeline.get("sequence", *one)[0]),
            "time_us": int(self._timeline.get("time_us", *one)[0]),
            "kind": kind,
        }

    # Doing it

    def _do(self, out: Rows, tick: Tick, step: _Step, token_D: Any) -> bool:
        """Change a bank, and tell; return whether it has changed."""
        bank, slot, item = self._banks[step.level], tick.job.slot, step.item
        stream_id, kind = tick.job.stream_id, item["kind"]

        def tell(op: str, place: int = -1, refusal: str | None = None, prompt_id: str | None = None) -> None:
            self._event(
                out,
                tick.key,
                stream_id,
                item,
                op,
                place=place,
                valid=int(bank.valid_S[slot]),
                refusal=refusal,
                prompt_id=prompt_id,
            )

        if step.refusal is not None:
            tell("reject", refusal=step.refusal)
            return False
        if kind == "expire":
            bank.forget(slot, [step.place])
            tell("expire", step.place)
            return True
        if kind == "reset":
            number = bank.clear(slot)
            tell("reset")
            return number > 0
        if kind in ("retract", "pin"):
            done = bank.retract(slot, item["target"]) if kind == "retract" else bank.pin(slot, item["target"], item["pinned"])
            if not done:
                tell("reject", refusal=f"the bank holds no prompt {item['target']!r}; it may have made room for newer ones")
                return False
            for place in done:
                tell(kind, place)
            return bool(kind == "retract")
        assert step.said is not None and token_D is not None
        if kind == "reencode":
            if not any(place == step.place for place, _ in bank.waiting(slot)):
                return False
            bank.reencode(slot, step.place, token_D)
            tell("reencode", step.place)
            return True
        is_first = item.setdefault("written", 0) == 0
        replaced = bank.retract(slot, item["prompt_id"]) if is_first and item["prompt_id"] else []
        item["written"] += 1
        written = bank.write(slot, step.said, token_D)
        if written.op == "reject":
            tell("reject", refusal="all prompts of the bank are pinned; take a pin off, retract one, or raise capacity")
            return bool(replaced)
        tell("replace" if replaced else written.op, written.slot)
        if written.evicted is not None:
            tell("evict", written.slot, prompt_id=written.evicted)
        return True

    def _event(
        self,
        out: Rows,
        key: int,
        stream_id: str,
        item: Item,
        op: str,
        *,
        place: int = -1,
        valid: int | None = None,
        refusal: str | None = None,
        prompt_id: str | None = None,
    ) -> None:
        out.event(
            key,
            stream_id=stream_id,
            sequence=item["sequence"],
            event_time=item["time_us"],
            granularity=item["granularity"],
            prompt_id=(prompt_id if prompt_id is not None else item["prompt_id"]) or None,
            op=op,
            slot=None if place < 0 else place,
            n_valid=valid,
            status="ok" if refusal is None else "rejected_prompt",
            error=refusal,
        )
