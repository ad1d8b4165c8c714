"""``streambank ask`` and ``streambank prompt``: what comes back in plain words with what it rests on, or as JSON lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from connectors.errors import ConfigError
from pipelines.asking.prompts import prompt
from pipelines.asking.putting import GOOD, Answer
from pipelines.asking.questions import ask, withdraw
from pipelines.asking.route import PROMPT, Request
from pipelines.document import parse_scalar_or_flow
from pipelines.spec import PipelineSpec

__all__ = ["answer_json", "answer_text", "ask_pipeline", "prompt_pipeline"]

_FOLD = 8
"""Items of a list that are shown."""


def ask_pipeline(
    spec: PipelineSpec,
    text: str,
    streams: Sequence[str],
    *,
    columns: Sequence[str],
    **how: Any,
) -> list[Answer]:
    """Ask; ``columns`` are ``NAME=VALUE`` texts for other control columns. With ``withdraws`` the text is a question's id."""
    if how.pop("withdraws", False):
        kept = {name: how[name] for name in ("operator", "sink", "timeout_s") if name in how}
        return withdraw(spec, text, streams, **kept)
    return ask(spec, text, streams, values=_filled(columns), say=_say, **how)


def prompt_pipeline(spec: PipelineSpec, kind: Any, value: str | None, *, columns: Sequence[str], **how: Any) -> list[Answer]:
    """Give a prompt; ``columns`` as in ``ask_pipeline``."""
    return prompt(spec, kind, value, values=_filled(columns), say=_say, **how)


def _filled(columns: Sequence[str]) -> dict[str, Any]:
    values = {}
    for given in columns:
        name, equals, value = given.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--column {given}: write NAME=VALUE, for example --column max_tokens=64")
        values[name.strip()] = parse_scalar_or_flow(value, f"--column {given}")
    return values


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def answer_json(answer: Answer) -> str:
    """Return the row of an answer as one JSON line; without one, stream and id, and the status ``no_answer``."""
    row = answer.row
    if row is None:
        row = {"stream_id": answer.stream_id, "id": answer.id, "status": "no_answer"}
    return json.dumps(row, default=_show, ensure_ascii=False)


def answer_text(answer: Answer, spec: PipelineSpec, request: Request) -> str:
    """Return an answer in plain words, below it the other columns of its row; without one, what to look at.

    What became of a prompt stands in its column ``op``, and its id is shown: one may want to retract it.
    """
    row = answer.row
    if row is None:
        return f"{answer.stream_id}: no answer within {answer.seconds:.1f} s\n{_advice(answer, spec, request)}"
    status = row.get("status") or "ok"
    error = row.get("error")
    first = "op" if request is PROMPT else "answer"
    head = row.get(first)
    if status in GOOD and status != "ok":
        head = f"{status}, as {row.get(request.id_column)}"
    elif status != "ok":
        reason = f"{status}: {error or 'the operator says no more'}"
        head = reason if head is None else f"{head} ({reason})"
    left_out = {"stream_id", "sequence", "event_time", first, "status", "error"}
    left_out |= set() if request is PROMPT else {request.column, request.id_column}
    rests = {name: value for name, value in row.items() if name not in left_out and value is not None and value != []}
    lines = [f"{answer.stream_id}: {head if head is not None else 'answered'}"]
    for name, value in rests.items():
        if isinstance(value, list) and isinstance(value[0], list):  # such as the frames that each layer has retrieved
            lines += [f"  {name} {number}  {_words(item)}" for number, item in enumerate(value[:_FOLD])]
            lines += [f"  {name}  and {len(value) - _FOLD} more"] if len(value) > _FOLD else []
        else:
            lines.append(f"  {name}  {_words(value)}")
    return "\n".join(lines)


def _advice(answer: Answer, spec: PipelineSpec, request: Request) -> str:
    return "\n".join(
        [
            f"  is the pipeline running?   {_holder(spec.state)}",
            f"  is the stream known?       {answer.stream_id!r} must be what the data call it",
            f"  is the time too short?     committed rows appear every {spec.epoch_s:g} s (epoch_s); give a longer --timeout",
            f"  the {request.word} stays where it was put, and will be answered: {answer.id}",
        ]
    )


def _holder(state: Path) -> str:
    """Say which process has the state folder, as far as this machine can tell."""
    try:
        process = int((state / "lock").read_text().strip() or 0)
    except (OSError, ValueError):
        return f"no run has used the state folder {state}"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return f"process {process}, the last that used {state}, is not running on this machine"
    except PermissionError:
        pass  # it runs, as another user
    return f"process {process} uses {state}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_words(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list):
        more = f", and {len(value) - _FOLD} more" if len(value) > _FOLD else ""
        return ", ".join(_words(item) for item in value[:_FOLD]) + more
    return f"{value:.4g}" if isinstance(value, float) else str(_show(value))


def _show(value: Any) -> Any:
    """Return what JSON has no form for as text."""
    if isinstance(value, datetime | date):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.3f} s"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return str(value) if not isinstance(value, str | int | bool) else value
