"""Telling a running pipeline what is so: a prompt about each of some streams, and what its operator makes of it.

A prompt is a control row with the columns ``kind`` and ``prompt_id``; ``memprompttss`` takes such rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from connectors.errors import ConfigError, nearest
from pipelines.asking.putting import Answer, Time, make_rows, moment, offset_s, put_rows, require_streams, time_values
from pipelines.asking.route import PROMPT, find_route
from pipelines.spec import PipelineSpec

__all__ = ["KINDS", "PromptKind", "prompt"]

PromptKind = Literal["label", "boundary", "retract", "pin", "reset", "tell"]
KINDS: tuple[PromptKind, ...] = get_args(PromptKind)

_NAMES = {
    "state": "label",
    "target": "the id",
    "at_end": "--until",
    "granularity": "--granularity",
    "aspect": "--incorrect",
    "author": "--author",
    "pinned": "--off",
}
"""Control column → what messages call it."""


def prompt(
    spec: PipelineSpec,
    kind: PromptKind,
    value: int | str | bool | None = None,
    *,
    streams: Sequence[str],
    at: Time | None = None,
    until: Time | None = None,
    correct: bool = True,
    granularity: int | None = None,
    pinned: bool = True,
    author: str | None = None,
    id: str | None = None,
    operator: str | None = None,
    sink: str | None = None,
    values: Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
    say: Callable[[str], None] = lambda text: None,
    cancelled: threading.Event | None = None,
) -> list[Answer]:
    """Give a prompt about each of ``streams`` and wait for what becomes of it; return that in the order of ``streams``.

    ``kind`` and ``value``: ``label`` with a state (with ``correct=False``: it is not this state); ``boundary``: a segment
    begins there (``False`` or ``no``: none does); ``retract`` and ``pin`` with the id of an earlier prompt (``pinned=False``
    takes the pin off); ``reset``: forget all prompts; ``tell`` with a state: a row of alerts each time that it begins. ``at``
    is the event time that it is about, as for ``ask``; None: the newest row. ``until`` makes it a range. ``granularity``:
    which of the operator's levels of detail. ``id`` is the prompt's own, by which it can be retracted; a prompt with an id
    that is there replaces it. The rest is as for ``ask``.

    Raise ``ConfigError`` where the pipeline file has no way for it or the prompt makes no sense, another ``StreambankError``
    where it cannot be put or the sink cannot be reached.
    """
    streams = require_streams(streams, PROMPT.word)
    given = _values(kind, value, correct=correct, pinned=pinned, at=at, until=until)
    given |= {name: each for name, each in (("granularity", granularity), ("author", author)) if each is not None}
    if id is not None and not id.strip():
        raise ConfigError("--id: is empty; leave it out, or name the prompt")
    route = find_route(spec, PROMPT, operator=operator, sink=sink)
    if taken := ({PROMPT.id_column} | given.keys()) & (values or {}).keys():
        raise ConfigError(f"--column {min(taken)}: this column is filled already; leave it out")
    if until is not None:
        given["at_end"] = moment(until, "--until")
    rows = make_rows(route, streams, {**given, **(values or {}), **time_values(route, at)}, _NAMES, id)
    return put_rows(spec, route, rows, at=at, timeout_s=timeout_s, say=say, cancelled=cancelled)


def _values(
    kind: str, value: int | str | bool | None, *, correct: bool, pinned: bool, at: Time | None, until: Time | None
) -> dict[str, Any]:
    """Return the columns of a prompt. Raise ``ConfigError`` for what its kind does not take, or lacks."""
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is no kind of prompt{nearest(kind, KINDS)}; allowed: {', '.join(KINDS)}")
    about_time = kind in ("label", "boundary")
    for name, is_given, takes in (
        ("--at", at is not None, about_time),
        ("--until", until is not None, kind == "label"),
        ("--incorrect", not correct, about_time),
        ("--off", not pinned, kind == "pin"),
    ):
        if is_given and not takes:
            raise ConfigError(f"{name}: has no meaning for {kind}; leave it out")
    if until is not None and (at is None or offset_s(at) is not None or offset_s(until) is not None):
        raise ConfigError("--until: a range needs two absolute times; give --at and --until as ISO 8601 or seconds since 1970")
    if kind == "tell":
        return {"kind": kind, "state": _state(value, kind)}
    aspect = {} if correct else {"aspect": "incorrect"}
    if kind == "label":
        return {"kind": kind, "state": _state(value, kind), **aspect}
    if kind == "boundary":
        return {"kind": kind, "boundary": _truth(value), **aspect}
    if kind == "reset":
        if value is not None:
            raise ConfigError(f"reset takes no value, got {value!r}; to take back one prompt, retract it by its id")
        return {"kind": kind}
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{kind} needs the id of a prompt, as `streambank prompt` has printed it; got {value!r}")
    return {"kind": kind, "target": value, **({} if pinned else {"pinned": False})}


def _state(value: int | str | bool | None, kind: str) -> int:
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        return int(value)
    except ValueError:
        raise ConfigError(f"{kind} needs the number of a state, such as `{kind} 7`; got {value!r}") from None


def _truth(value: int | str | bool | None) -> bool:
    if value is None or isinstance(value, bool):
        return value is not False
    if value in ("yes", "no"):
        return value == "yes"
    raise ConfigError(f"boundary takes yes (a segment begins there; the default) or no (none does); got {value!r}")
