"""The tools of MCP (Model Context Protocol): an agent lists streams, asks, prompts, and looks at a frame."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from connectors.errors import StreambankError
from connectors.extras import optional
from pipelines.asking.putting import Answer, moment, offset_s
from pipelines.serving.desk import Desk
from pipelines.serving.evidence import evidence, plain_row
from pipelines.serving.live import Live
from pipelines.serving.pictures import jpeg

mcpserver = optional("mcp.server.mcpserver")
exceptions = optional("mcp.server.mcpserver.exceptions")
mcp_types = optional("mcp.types")

__all__ = ["mcp_server"]

_HEIGHT = 360


def mcp_server(live: Live, desk: Desk, name: str) -> Any:
    """Return a server with the tools of a pipeline."""
    about = "Live streams of a Streambank pipeline: list them, then ask about one."
    server = mcpserver.MCPServer(name, instructions=about, log_level="WARNING")

    @server.tool(structured_output=False)  # type: ignore[untyped-decorator]
    async def list_streams() -> Any:
        """List the streams of the running pipeline, with rates and the time of the newest row (seconds since 1970)."""
        return [_text(json.dumps(live.streams()))]

    @server.tool(structured_output=False)  # type: ignore[untyped-decorator]
    async def ask(stream: str, question: str, at: str | None = None) -> Any:
        """Ask a question about a stream and get the answer with the frames it rests on.

        at: the moment it is about: ISO 8601, seconds since 1970, 00:05:00 into the stream or -30s before now. Default: now.
        """
        answer = await _told(desk.ask(stream, question, at=at))
        parts = [_text(json.dumps({"answer": answer.text, **plain_row(answer.row or {})}))]
        for time in evidence(answer.row):
            frame = live.past_frame(stream, round(time.timestamp() * 1e6))
            if frame is not None:
                parts.append(_image(jpeg(frame, max_height=_HEIGHT)))
        return parts

    @server.tool(structured_output=False)  # type: ignore[untyped-decorator]
    async def prompt(stream: str, kind: str, value: str | None = None, at: str | None = None, until: str | None = None) -> Any:
        """Tell the pipeline what is so in a stream of sensor data.

        kind and value: label with a state, boundary with yes or no, retract and pin with a prompt's id, reset, or tell with a
        state (alerts each time that it begins). at: the moment, as for ask; until makes a label one of a range.
        """
        answer = await _told(desk.prompt(stream, kind, value, at=at, until=until))
        return [_text(json.dumps(plain_row(answer.row or {})))]

    @server.tool(structured_output=False)  # type: ignore[untyped-decorator]
    async def get_frame(stream: str, at: str | None = None) -> Any:
        """Return the newest frame of a stream with what was detected in it, or the one at a moment that is still kept."""
        if at is None:
            shown = live.picture(stream)
            if shown is None:
                raise exceptions.ToolError(f"no frame of {stream!r} has come; streams: {', '.join(live.names()) or 'none'}")
            frame, boxes = shown
            return [_text(_when(frame.time_us)), _image(jpeg(frame, boxes, max_height=_HEIGHT))]
        if offset_s(at) is not None:
            raise exceptions.ToolError(f"at is {at!r}; give an ISO 8601 time or seconds since 1970")
        time = moment(at, "at")
        past = live.past_frame(stream, round(time.timestamp() * 1e6))
        if past is None:
            raise exceptions.ToolError(f"no frame of {stream!r} at {at} is kept")
        return [_text(_when(past.time_us)), _image(jpeg(past, max_height=_HEIGHT))]

    return server


async def _told(work: Any) -> Answer:
    try:
        answer: Answer = await work
    except StreambankError as error:
        raise exceptions.ToolError(str(error)) from error
    if answer.row is None:
        raise exceptions.ToolError(f"no answer within {answer.seconds:.1f} s; is the pipeline running?")
    return answer


def _when(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat()


def _text(text: str) -> Any:
    return mcp_types.TextContent(type="text", text=text)


def _image(data: bytes) -> Any:
    import base64

    return mcp_types.ImageContent(type="image", data=base64.b64encode(data).decode(), mime_type="image/jpeg")
