"""Prompts as control rows: what can be read of them, and about which samples they are. Knows no bank and no network."""

# N samples, T samples of a context, C channels

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.memprompttss.model import BOUNDARY, LABEL
from operators.memprompttss.settings import ID_BYTES
from operators.streams import NEVER_US, Refusal

__all__ = ["KINDS", "About", "PromptLimits", "places", "read_prompt"]

Ints = npt.NDArray[np.int64]
Item = dict[str, Any]
"""A prompt that waits: plain values, as JSON in snapshots."""

KINDS = ("label", "boundary", "retract", "pin", "reset", "tell")
_ASPECTS = ("correct", "incorrect")
_LONGEST_S = 1e11  # three thousand years


class PromptLimits(NamedTuple):
    """What can be said."""

    classes: int
    granularities: Collection[int]
    context: int
    channels: int


class About(NamedTuple):
    """The samples that a prompt is about, counted from the origin; in their place why there are none."""

    samples: list[int]
    refusal: str | None


def read_prompt(row: Mapping[str, Any], limits: PromptLimits) -> Item | Refusal:
    """Return what a control row says (times are integers), or why it cannot be used."""
    refused = _problem(row, limits)
    if refused is not None:
        return Refusal("rejected_prompt", refused)
    granularity = row["granularity"]
    kind = row["kind"]
    return {
        "prompt_id": row["prompt_id"] or "",
        "kind": kind,
        "at_us": row["at"],
        "end_us": row["at_end"],
        "offset_us": None if row["at_offset_s"] is None else round(row["at_offset_s"] * 1e6),
        "type": LABEL if kind == "label" else BOUNDARY,
        "state": row["state"] or 0,
        "boundary": 0 if row["boundary"] is False else 1,
        "incorrect": int(row["aspect"] == "incorrect"),
        "granularity": next(iter(limits.granularities)) if granularity is None else granularity,
        "target": row["target"] or row["prompt_id"] or "",
        "pinned": bool(row["pinned"]) if kind != "pin" else row["pinned"] is not False,
        "context": row["context"],
        "debounce_s": row["debounce_s"] or 0.0,
        "sequence": row["sequence"],
        "time_us": row["event_time"],
    }


def _problem(row: Mapping[str, Any], limits: PromptLimits) -> str | None:
    if row.get("error") is not None:
        return f"the row could not be read: {row['error']}"
    kind, state, aspect, granularity = row["kind"], row["state"], row["aspect"], row["granularity"]
    if kind not in KINDS:
        return f"kind is {kind!r}; it must be one of {', '.join(KINDS)}"
    for name in ("prompt_id", "target"):
        if row[name] is not None and len(row[name].encode()) > ID_BYTES:
            return f"{name} has {len(row[name].encode())} bytes; at most {ID_BYTES}"
    if granularity is not None and granularity not in limits.granularities:
        return f"granularity is {granularity}; there are {', '.join(map(str, limits.granularities))} (granularities)"
    if aspect is not None and aspect not in _ASPECTS:
        return f"aspect is {aspect!r}; it must be correct or incorrect"
    if kind in ("retract", "pin"):
        return None if row["target"] or row["prompt_id"] else f"a prompt of kind {kind} needs the target's prompt_id"
    if kind == "reset":
        return None
    if kind in ("label", "tell") and (state is None or not 0 <= state < limits.classes):
        return f"state is {state}; the network has the states 0 to {limits.classes - 1}"
    offset_s, debounce_s = row["at_offset_s"], row["debounce_s"]
    if kind == "tell":
        if not row["prompt_id"]:
            return "a prompt of kind tell needs a prompt_id, by which it can be retracted"
        if row["at"] is not None or offset_s is not None:
            return "a prompt of kind tell is about what is to come; leave out at and at_offset_s"
        if debounce_s is not None and not 0 <= debounce_s < _LONGEST_S:
            return f"debounce_s is {debounce_s!r}; it must be 0 or more seconds"
        return None
    if offset_s is not None:
        if row["at"] is not None:
            return "the prompt has both at and at_offset_s; give one of them"
        if not isinstance(offset_s, int | float) or not abs(offset_s) < _LONGEST_S:
            return f"at_offset_s is {offset_s!r}; it must be a number of seconds between -{_LONGEST_S:g} and {_LONGEST_S:g}"
    if row["at_end"] is not None:
        if kind == "boundary":
            return "a boundary is at one time; remove at_end"
        if row["at"] is None or row["at_end"] < row["at"]:
            return "at_end needs an earlier at"
    context = row["context"]
    if context is not None:
        wanted = limits.context * limits.channels
        if len(context) != wanted:
            return f"context has {len(context)} values; {limits.context} samples of {limits.channels} channels are {wanted}"
        if not all(value is not None and math.isfinite(value) for value in context):
            return "context has values that are no numbers"
    return None


def places(item: Item, time_us_N: Ints, first: int, context: int, first_time_us: int) -> About:
    """Return the samples that a prompt is about.

    ``time_us_N`` are the times of the samples that are remembered, the first of which is number ``first``; ``first_time_us`` is
    that of the stream's first row. A time between two samples is the earlier one's. A range longer than a context becomes
    several samples, evenly apart.
    """
    at_us = item["at_us"]
    if item["offset_us"] is not None:
        at_us = (first_time_us if item["offset_us"] >= 0 else int(time_us_N[-1])) + item["offset_us"]
    if at_us is None:
        at_us = int(time_us_N[-1])
    if item["context"] is not None:
        return About([], None)
    place = int(np.searchsorted(time_us_N, at_us, side="right")) - 1
    if place < 0:
        behind_s = (int(time_us_N[0]) - at_us) / 1e6
        start = "the stream or its part after the last gap begins" if first == 0 else "the history begins"
        return About([], f"too old: {start} {behind_s:.6f} s after it; raise history, or give the samples around it as context")
    if item["kind"] == "boundary" and first + place == 0:
        return About([], "nothing can be said of a boundary at the first sample of a stream, or after a gap")
    if item["end_us"] is None:
        return About([first + place], None)
    last = int(np.searchsorted(time_us_N, item["end_us"], side="right")) - 1
    length = last - place + 1
    number = max(1, -(-length // context))
    # The middles of so many equal parts.
    return About([first + place + (2 * i + 1) * length // (2 * number) for i in range(number)], None)


def ready_us(item: Item) -> int:
    """Return the time that must be reached before a prompt can be used."""
    times = [time for time in (item["at_us"], item["end_us"]) if time is not None]
    return max(times, default=NEVER_US)
