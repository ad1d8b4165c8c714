"""The part of the OpenAI chat API that questions need: ``/v1/models`` and ``/v1/chat/completions``. A model is a stream.

The question is the text of the newest user message; what was said before is not told to the pipeline, whose memory is the
stream. Frames that the answer rests on come as image parts in ``evidence`` beside the answer's text, the operator's row in
``row``.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from connectors.errors import StreambankError
from connectors.extras import optional
from pipelines.asking.putting import Answer
from pipelines.serving.desk import Busy, Desk
from pipelines.serving.evidence import data_url, evidence, plain_row
from pipelines.serving.gone import Gone, until_gone
from pipelines.serving.live import Live

responses = optional("starlette.responses")
routing = optional("starlette.routing")

__all__ = ["openai_routes"]

_LONGEST = 1 << 20
_OWN = ("at", "at_offset_s", "select_clips", "frame_sequences")
"""Control columns that a request may hold beside OpenAI's own fields (``extra_body``)."""


def openai_routes(live: Live, desk: Desk) -> list[Any]:
    """Return the routes."""

    async def models(request: Any) -> Any:
        return responses.JSONResponse({"object": "list", "data": [_model(name) for name in live.names()]})

    async def model(request: Any) -> Any:
        name = request.path_params["name"]
        if name not in live.names():
            return _error(404, f"there is no stream {name!r}", "model_not_found")
        return responses.JSONResponse(_model(name))

    async def chat(request: Any) -> Any:
        try:
            asked = _Asked.of(await _body(request))
        except ValueError as error:
            return _error(400, str(error), "invalid_request_error")
        if asked.stream:
            return responses.StreamingResponse(_pieces(live, desk, asked), media_type="text/event-stream")
        try:
            answer = await until_gone(request, desk.ask(asked.model, asked.text, values=asked.values))
        except Gone:
            return responses.Response(status_code=499)
        except Busy as error:
            return _error(429, str(error), "rate_limit_exceeded")
        except StreambankError as error:
            return _error(400, str(error), "invalid_request_error")
        if answer.row is None:
            return _error(504, f"no answer within {answer.seconds:.1f} s; is the pipeline running?", "timeout")
        message = {"role": "assistant", "content": _text(answer), "refusal": None, **_extra(live, answer)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return responses.JSONResponse(_completion(asked, "chat.completion", [choice]) | {"usage": _USAGE})

    return [
        routing.Route("/v1/models", models),
        routing.Route("/v1/models/{name:path}", model),
        routing.Route("/v1/chat/completions", chat, methods=["POST"]),
    ]


_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


class _Asked:
    """A request for a completion."""

    def __init__(self, model: str, text: str, *, stream: bool, values: dict[str, Any]) -> None:
        self.model, self.text, self.stream, self.values = model, text, stream, values
        self.id, self.created = f"chatcmpl-{uuid4().hex}", int(time.time())

    @staticmethod
    def of(body: Any) -> _Asked:
        """Read a request. Raise ``ValueError`` that says what cannot be used."""
        if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not body["model"]:
            raise ValueError("model: name the stream that the question is about; /v1/models lists them")
        if body.get("n") not in (None, 1):
            raise ValueError(f"n: is {body['n']!r}; a question gets one answer")
        messages = body.get("messages")
        said = (
            [one for one in messages if isinstance(one, dict) and one.get("role") == "user"]
            if isinstance(messages, list)
            else []
        )
        if not said:
            raise ValueError("messages: there is none of the role user, which is the question")
        values = {name: body[name] for name in _OWN if body.get(name) is not None}
        limits = [body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
        if limits:
            values["max_tokens"] = limits[0]
        return _Asked(body["model"], _question(said[-1].get("content")), stream=body.get("stream") is True, values=values)


def _question(content: Any) -> str:
    if isinstance(content, list):
        kinds = {part.get("type") for part in content if isinstance(part, dict)}
        if kinds - {"text"}:
            raise ValueError(
                f"messages: has parts of type {', '.join(sorted(map(str, kinds - {'text'})))}; frames come from the stream"
            )
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str) or not content.strip():
        raise ValueError("messages: the newest one of the role user has no text")
    return content


async def _body(request: Any) -> Any:
    body = await request.body()
    if len(body) > _LONGEST:
        raise ValueError(f"the request has {len(body)} bytes; at most {_LONGEST} are read")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request is no JSON: {error}") from None


async def _pieces(live: Live, desk: Desk, asked: _Asked) -> AsyncIterator[str]:
    """Yield the events of a streamed answer. Whoever goes away ends this, and with it the reader of the answer."""

    def piece(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return f"data: {json.dumps(_completion(asked, 'chat.completion.chunk', [choice]))}\n\n"

    def failed(status: int, message: str, kind: str) -> str:
        return f"data: {json.dumps({'error': {'message': message, 'type': kind, 'code': status}})}\n\n"

    yield piece({"role": "assistant", "content": ""})
    try:
        answer = await desk.ask(asked.model, asked.text, values=asked.values)
    except Busy as error:
        yield failed(429, str(error), "rate_limit_exceeded")
        return
    except StreambankError as error:
        yield failed(400, str(error), "invalid_request_error")
        return
    if answer.row is None:
        yield failed(504, f"no answer within {answer.seconds:.1f} s; is the pipeline running?", "timeout")
        return
    words = _text(answer).split(" ")
    for n, word in enumerate(words):
        yield piece({"content": word if n == 0 else f" {word}"})
    yield piece(_extra(live, answer), "stop")
    yield "data: [DONE]\n\n"


def _text(answer: Answer) -> str:
    """Return the answer; where there is none, why."""
    row = answer.row or {}
    if answer.text is not None:
        return answer.text
    return f"{row.get('status')}: {row.get('error') or 'the operator says no more'}"


def _extra(live: Live, answer: Answer) -> dict[str, Any]:
    parts = []
    for at in evidence(answer.row):
        url = data_url(live, answer.stream_id, at)
        if url is not None:
            parts.append({"type": "image_url", "image_url": {"url": url}, "event_time": plain_row(at)})
    return {"evidence": parts, "row": plain_row(answer.row)}


def _completion(asked: _Asked, kind: str, choices: list[Any]) -> dict[str, Any]:
    return {"id": asked.id, "object": kind, "created": asked.created, "model": asked.model, "choices": choices}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "streambank"}


def _error(status: int, message: str, kind: str) -> Any:
    return responses.JSONResponse({"error": {"message": message, "type": kind, "code": kind, "param": None}}, status)
