"""The bank of prompts, one of each granularity: what is written where, replaced, retracted, pinned, forgotten (spec section 4).

Every row is one remembered prompt: its token, and what it said, so that the next one can be compared with it. Rows that were
retracted stay in place, are not read, and are the first to be used again. Knows slots, no stream ids and no time but samples'.
"""

# S slots, B slots of a call, N tokens, D width

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.memprompttss.model import LABEL, Prompts
from models.uploads import upload
from operators.banks import Fills, Plan, Policy, RowSpec, SlotBank, Writing, fifo_pinned
from operators.memprompttss.settings import ID_BYTES
from operators.state import State

__all__ = ["NEVER_SAID", "PromptBank", "Said", "Written"]

NEVER_SAID = 2**63 - 1
"""Time of no prompt: no age is above it."""

_RETRACTED = -(2**62)
"""Order of rows that are free again: before all others."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a prompt says about one sample."""

    prompt_id: str
    position: int
    """The sample, counted from the stream's first one."""
    kind: int
    state: int
    boundary: int
    incorrect: int
    pinned: bool
    provisional: bool
    """Its context was cut at the newest sample, and is to be encoded again."""
    order: int
    """Rises with every prompt of the stream."""
    said_us: int
    """When it was said."""


class Written(NamedTuple):
    """Where a prompt went."""

    op: str
    """write, replace, or reject: every row is pinned."""
    slot: int
    evicted: str | None
    """The id of the prompt that made room."""


class PromptBank:
    """Prompts of one granularity of all streams."""

    def __init__(self, name: str, *, slots: int, capacity: int, width: int, device: torch.device) -> None:
        specs = self.specs(width)
        token = {"token": specs.pop("token")}
        self.facts = SlotBank(name, specs, slots=slots, capacity=capacity)
        """What prompts say, on the CPU, where it is decided which of them stay."""
        self.tokens = SlotBank(name, token, slots=slots, capacity=capacity, device=device)
        """What the network reads of them: on its device, each where its facts are."""
        self._policy = fifo_pinned("order", "pinned")
        self.valid_S = np.zeros(slots, np.int64)
        """Prompts that are read, per slot."""
        self.provisional_S = np.zeros(slots, np.int64)
        """Of them those that wait for samples."""
        self.oldest_us_S = np.full(slots, NEVER_SAID)
        """When the oldest of them that is not pinned was said."""

    @staticmethod
    def specs(width: int) -> dict[str, RowSpec]:
        """Return the parts of a row."""
        whole = RowSpec((), torch.int64)
        flag = RowSpec((), torch.bool)
        rows = {"token": RowSpec((width,)), "id": RowSpec((ID_BYTES,), torch.uint8)}
        rows |= dict.fromkeys(("position", "order", "said_us", "kind", "state", "boundary", "incorrect"), whole)
        return rows | dict.fromkeys(("valid", "pinned", "provisional"), flag)

    def read(self, slots_B: npt.NDArray[np.int64]) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """Return tokens [B, N, D] on the device, and which of them are there [B, N]."""
        slots = torch.from_numpy(slots_B)
        fill_B = self.facts.fill(slots).numpy()
        known = Fills(int(fill_B.min()), int(fill_B.max()))
        tokens = self.tokens.read(upload(slots, self.tokens.device), known=known)
        there_BN = self.facts.rows["valid"][slots].numpy()[:, : known.most] & (np.arange(known.most) < fill_B[:, None])
        return tokens.rows["token"], there_BN

    def write(self, slot: int, said: Said, token_D: Tensor) -> Written:
        """Remember a prompt: in place of one that says the same or the contrary about the sample, else in a free row.

        Where there is none, in the row of the oldest prompt that is not pinned.
        """
        place = self._same(slot, said)
        if place is not None:
            self._put(slot, said, token_D, place)
            return Written("replace", place, None)
        ids, valid = self.facts.rows["id"][slot].clone(), self.facts.rows["valid"][slot].clone()
        fill = int(self.facts.fill(self._one(slot))[0])
        position_BN, stored_BN = self._put(slot, said, token_D, None)
        if not bool(stored_BN[0, 0]):
            return Written("reject", -1, None)
        place = int(position_BN[0, 0])
        return Written("write", place, _text(ids[place]) if place < fill and bool(valid[place]) else None)

    def reencode(self, slot: int, place: int, token_D: Tensor) -> None:
        """Put the token of a prompt whose context is complete now."""
        slot_1, place_1 = (upload(self._one(number), self.tokens.device) for number in (slot, place))
        self.tokens.put(slot_1, place_1, {"token": token_D[None]})
        self.settle(slot, [place])

    def settle(self, slot: int, places: list[int]) -> None:
        """Note that these prompts wait for no samples any more."""
        flags = self.facts.rows["provisional"][slot].clone()
        flags[places] = False
        self.facts.assign(self._one(slot), "provisional", flags[None])
        self.count(slot)

    def waiting(self, slot: int) -> list[tuple[int, Said]]:
        """Return the places and prompts that wait for samples."""
        rows = self.facts.rows
        places = (self._there(slot) & rows["provisional"][slot]).nonzero()[:, 0].tolist()
        return [(place, self._said(slot, place)) for place in places]

    def retract(self, slot: int, prompt_id: str) -> list[int]:
        """Forget the prompts of this id; return where they were."""
        places = self._of(slot, prompt_id)
        self.forget(slot, places)
        return places

    def aged(self, slot: int, before_us: int) -> list[tuple[int, str]]:
        """Return the places and ids of prompts that were said before this time and have no pin."""
        if self.oldest_us_S[slot] >= before_us:
            return []
        rows = self.facts.rows
        old = self._there(slot) & ~rows["pinned"][slot] & (rows["said_us"][slot] < before_us)
        return [(place, _text(rows["id"][slot, place])) for place in old.nonzero()[:, 0].tolist()]

    def forget(self, slot: int, places: list[int]) -> None:
        """Forget the prompts at these places."""
        if places:
            for name, value in (("valid", False), ("pinned", False), ("provisional", False), ("order", _RETRACTED)):
                held = self.facts.rows[name][slot].clone()
                held[places] = value
                self.facts.assign(self._one(slot), name, held[None])
            self.count(slot)

    def pin(self, slot: int, prompt_id: str, pinned: bool) -> list[int]:
        """Keep the prompts of this id from making room, or let them; return where they are."""
        places = self._of(slot, prompt_id)
        if places:
            flags = self.facts.rows["pinned"][slot].clone()
            flags[places] = pinned
            self.facts.assign(self._one(slot), "pinned", flags[None])
            self.count(slot)
        return places

    def clear(self, slot: int) -> int:
        """Forget all prompts; return how many there were."""
        number = int(self.valid_S[slot])
        self._both("clear", self._one(slot))
        self.count(slot)
        return number

    def open(self, slot: int) -> None:
        """Make a slot ready for a new stream."""
        self._both("open", self._one(slot), torch.zeros(1, dtype=torch.int64))
        self.count(slot)

    def release(self, slot: int) -> None:
        """Forget a stream."""
        self._both("release", self._one(slot))
        self.count(slot)

    def load(self, slots_N: Tensor, state: State) -> None:
        """Take slots from a full state; all others are to be empty."""
        self.valid_S[:] = self.provisional_S[:] = 0
        self.oldest_us_S[:] = NEVER_SAID
        self._both("load", slots_N, state)
        for slot in slots_N.tolist():
            self.count(slot)

    def count(self, slot: int) -> None:
        """Count again what a slot holds."""
        there = self._there(slot)
        self.valid_S[slot] = int(there.sum())
        self.provisional_S[slot] = int((there & self.facts.rows["provisional"][slot]).sum())
        said_us = self.facts.rows["said_us"][slot][there & ~self.facts.rows["pinned"][slot]]
        self.oldest_us_S[slot] = int(said_us.min()) if len(said_us) else NEVER_SAID

    @staticmethod
    def prompts(said: list[Said]) -> Prompts:
        """Return what the network is told."""
        parts = ([getattr(one, name) for one in said] for name in ("kind", "state", "boundary", "incorrect"))
        return Prompts(*(torch.tensor(part) for part in parts))

    def _put(self, slot: int, said: Said, token_D: Tensor, place: int | None) -> tuple[Tensor, Tensor]:
        text = said.prompt_id.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
        values: Mapping[str, object] = {
            "id": list(text),
            "position": said.position,
            "order": said.order,
            "said_us": said.said_us,
            "kind": said.kind,
            "state": said.state,
            "boundary": said.boundary,
            "incorrect": said.incorrect,
            "valid": True,
            "pinned": said.pinned,
            "provisional": said.provisional,
        }
        rows = {name: torch.tensor([[value]]) for name, value in values.items()}
        one = self._one(slot)
        policy = self._policy if place is None else _at(place)
        fill_B = self.facts.fill(one)
        position_BN, stored_BN = self.facts.write(one, rows, torch.ones_like(one), policy)
        if bool(stored_BN[0, 0]):
            device = self.tokens.device
            grown = bool(self.facts.fill(one) > fill_B)
            there = _at(int(position_BN[0, 0]), grown=grown)
            one = upload(one, device)
            self.tokens.write(one, {"token": token_D[None, None]}, torch.ones_like(one), there)
        self.count(slot)
        return position_BN, stored_BN

    def _same(self, slot: int, said: Said) -> int | None:
        """Return the place of a prompt that this one replaces: about the same sample, and not just another "not k"."""
        rows = self.facts.rows
        there = self._there(slot) & (rows["position"][slot] == said.position) & (rows["kind"][slot] == said.kind)
        if said.kind == LABEL:
            alike = (rows["state"][slot] == said.state) & (rows["incorrect"][slot] == said.incorrect)
            if not said.incorrect:
                alike |= rows["incorrect"][slot] == 0  # two different states are a contradiction
            there &= alike
        places = there.nonzero()[:, 0].tolist()
        return places[0] if places else None

    def _of(self, slot: int, prompt_id: str) -> list[int]:
        text = torch.tensor(list(prompt_id.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")), dtype=torch.uint8)
        same = (self.facts.rows["id"][slot] == text).all(1)
        found: list[int] = (self._there(slot) & same).nonzero()[:, 0].tolist()
        return found

    def _there(self, slot: int) -> Tensor:
        fill = self.facts.fill(self._one(slot))
        return (torch.arange(self.facts.capacity) < fill) & self.facts.rows["valid"][slot]

    def _said(self, slot: int, place: int) -> Said:
        rows = {name: self.facts.rows[name][slot, place] for name in self.facts.specs if name != "valid"}
        return Said(
            prompt_id=_text(rows["id"]),
            **{name: int(rows[name]) for name in ("position", "kind", "state", "boundary", "incorrect", "order", "said_us")},
            pinned=bool(rows["pinned"]),
            provisional=bool(rows["provisional"]),
        )

    def _one(self, slot: int) -> Tensor:
        return torch.tensor([slot])

    def _both(self, what: str, slots_N: Tensor, *more: Any) -> None:
        for bank in (self.facts, self.tokens):
            getattr(bank, what)(upload(slots_N, bank.device), *more)

    def export(self, slots_N: Tensor, state: State, *, incremental: bool) -> None:
        """Add slots to a state; all is clean then. Both banks stand there as one, with the counters of the facts."""
        for bank in (self.tokens, self.facts):
            bank.export(upload(slots_N, bank.device), state, incremental=incremental)
            bank.mark_clean()

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        for bank in (self.facts, self.tokens):
            bank.mark_clean()

    def bytes(self) -> int:
        """Return the bytes of both banks."""
        return sum(bank.bytes()["device"] for bank in (self.facts, self.tokens))


def _at(place: int, *, grown: bool = False) -> Policy:
    """Return the policy that writes one row; ``grown``: it is a new one."""

    def plan(writing: Writing) -> Plan:
        position_BN = torch.full((1, 1), place, device=writing.count_B.device)
        return Plan(
            position_BN, torch.ones_like(position_BN, dtype=torch.bool), writing.bank.fill(writing.slots_B) + int(grown)
        )

    return plan


def _text(id_: Tensor) -> str:
    return bytes(id_.tolist()).rstrip(b"\0").decode("utf-8", "replace")
