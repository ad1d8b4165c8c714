"""The server behind ``streambank serve``: the page and what it asks for, the OpenAI chat API, MCP; and its running."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors.errors import ConfigError, StreambankError
from connectors.extras import need, optional
from connectors.signals import graceful
from pipelines.asking.putting import Answer
from pipelines.serving.access import Access, is_loopback
from pipelines.serving.desk import Busy, Desk
from pipelines.serving.evidence import evidence, plain_row
from pipelines.serving.gone import Gone, until_gone
from pipelines.serving.live import Live
from pipelines.serving.mcp_tools import mcp_server
from pipelines.serving.openai_api import openai_routes
from pipelines.serving.pictures import Boxes, Frame, jpeg
from pipelines.spec import PipelineSpec

applications = optional("starlette.applications")
responses = optional("starlette.responses")
routing = optional("starlette.routing")

__all__ = ["ServeOptions", "make_app", "serve"]

_PAGE = Path(__file__).resolve().parent / "page"
_FILES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}
_LONGEST = 1 << 16
_ONLY_OURS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """How to serve."""

    host: str = "127.0.0.1"
    port: int = 8800
    token: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    readers: int = 16
    """Questions that are with the pipeline at the same time."""
    waiting: int = 256
    """Questions that may wait for their turn."""
    timeout_s: float = 60.0
    history_mib: float = 256.0
    """Frames that are kept as evidence."""

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.token:
            raise ConfigError(
                f"--host {self.host}: can be reached from other machines; set a token (STREAMBANK_TOKEN, or --token), or serve "
                "on 127.0.0.1"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("--tls-certificate and --tls-key belong together: give both, or neither")
        if self.token == "":
            raise ConfigError("--token: is empty; leave it out, or give one")


def make_app(spec: PipelineSpec, options: ServeOptions) -> Any:
    """Return the application (ASGI). Following the pipeline begins and ends with it."""
    live = Live(spec, history_bytes=int(options.history_mib * 2**20))
    desk = Desk(spec, readers=options.readers, waiting=options.waiting, timeout_s=options.timeout_s)
    tools = mcp_server(live, desk, spec.name)
    # Who may call is for ``Access`` to say, which stands before everything.
    security = need("mcp.server.transport_security", "serve").TransportSecuritySettings(enable_dns_rebinding_protection=False)
    mcp_app = tools.streamable_http_app(streamable_http_path="/mcp", transport_security=security)

    @contextlib.asynccontextmanager
    async def running(app: Any) -> AsyncIterator[None]:
        async with tools.session_manager.run():
            try:
                yield
            finally:
                desk.close()
                live.close()

    routes = [
        *(routing.Route(path, _file(*file)) for path, file in _FILES.items()),
        *_page_routes(spec, live, desk),
        *openai_routes(live, desk),
        *mcp_app.routes,
    ]
    app = applications.Starlette(routes=routes, lifespan=running)
    app.state.live, app.state.desk = live, desk
    return Access(app, token=options.token, secure=options.tls_key is not None)


def serve(spec: PipelineSpec, options: ServeOptions, *, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. Raise ``MissingExtra`` without the extra ``serve``, ``ConfigError`` for a port in use."""
    uvicorn = need("uvicorn", "serve")
    app = make_app(spec, options)
    tls: dict[str, Any] = {}
    if options.tls_key is not None:
        tls = {"ssl_certfile": str(options.tls_certificate), "ssl_keyfile": str(options.tls_key)}
    config = uvicorn.Config(
        app, host=options.host, port=options.port, log_level="warning", access_log=False, timeout_graceful_shutdown=2, **tls
    )
    server = uvicorn.Server(config)
    try:
        listening = config.bind_socket()
    except SystemExit:
        raise ConfigError(f"--port {options.port}: cannot be listened on at {options.host}; is it taken?") from None
    port = listening.getsockname()[1]
    # uvicorn closes all at a signal and then raises it again; one that comes before uvicorn listens for them must count, too.
    with graceful(lambda: setattr(server, "should_exit", True), "stopping"), contextlib.suppress(KeyboardInterrupt):
        say(f"http{'s' if tls else ''}://{f'[{options.host}]' if ':' in options.host else options.host}:{port}")
        server.run(sockets=[listening])


def _file(name: str, media_type: str) -> Any:
    async def send(request: Any) -> Any:
        return responses.FileResponse(_PAGE / name, media_type=media_type, headers=_ONLY_OURS)

    return send


def _page_routes(spec: PipelineSpec, live: Live, desk: Desk) -> list[Any]:
    """Return what the page asks for."""

    async def state(request: Any) -> Any:
        after = request.query_params.get("after", "0")
        number, answers = live.answers(int(after) if after.isdecimal() else 0)
        inside, reading = desk.load
        return responses.JSONResponse(
            {
                "pipeline": spec.name,
                "advice": live.advice,
                "problem": live.problem(),
                "committed": live.committed(),
                "questions": {"inside": inside, "reading": reading},
                "streams": plain_row(live.streams()),
                "answers": [_answer(row["stream_id"], row) for row in answers],
                "answered": number,
            },
            headers=_ONLY_OURS,
        )

    async def frame(request: Any) -> Any:
        name, at = request.path_params["name"], request.query_params.get("at")
        if at is not None:
            past = live.past_frame(name, round(float(at) * 1e6)) if _is_number(at) else None
            found: tuple[Frame, list[Boxes]] | None = None if past is None else (past, [])
        else:
            found = live.picture(name)
        if found is None:
            return responses.PlainTextResponse("no such frame", 404)
        data = jpeg(found[0], found[1])
        return responses.Response(data, media_type="image/jpeg", headers={**_ONLY_OURS, "X-Sequence": str(found[0].sequence)})

    async def strip(request: Any) -> Any:
        found = live.strip(request.path_params["name"])
        if found is None:
            return responses.PlainTextResponse("no such stream", 404)
        return responses.JSONResponse(plain_row(found), headers=_ONLY_OURS)

    async def ask(request: Any) -> Any:
        def work(given: dict[str, Any]) -> Any:
            how = {"at": given.get("at") or None, "standing": given.get("standing") is True}
            return desk.ask(_word(given, "stream"), _word(given, "question"), **how)

        return await _taken(request, work)

    async def prompt(request: Any) -> Any:
        def work(given: dict[str, Any]) -> Any:
            return desk.prompt(_word(given, "stream"), _word(given, "kind"), given.get("value"), at=given.get("at"))

        return await _taken(request, work)

    return [
        routing.Route("/api/state", state),
        routing.Route("/api/frame/{name:path}", frame),
        routing.Route("/api/strip/{name:path}", strip),
        routing.Route("/api/ask", ask, methods=["POST"]),
        routing.Route("/api/prompt", prompt, methods=["POST"]),
    ]


async def _taken(request: Any, work: Callable[[dict[str, Any]], Any]) -> Any:
    """Give what the page sends to the desk; return its answer, or what is wrong."""
    if not request.headers.get("content-type", "").startswith("application/json"):  # what a form of another site cannot send
        return responses.JSONResponse({"error": "send JSON, with its Content-Type"}, 415)
    body = await request.body()
    try:
        given = json.loads(body) if len(body) <= _LONGEST else None
        if not isinstance(given, dict):
            raise ValueError("send a JSON object of at most 64 KiB")
        answer: Answer = await until_gone(request, work(given))
    except Gone:
        return responses.Response(status_code=499)
    except Busy as error:
        return responses.JSONResponse({"error": str(error)}, 429)
    except (StreambankError, ValueError) as error:
        return responses.JSONResponse({"error": str(error)}, 400)
    if answer.row is None:
        said = f"no answer within {answer.seconds:.1f} s; is the pipeline running?"
        return responses.JSONResponse({"error": said}, 504)
    return responses.JSONResponse(_answer(answer.stream_id, answer.row))


def _answer(stream: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return an answer with the times of its evidence, whose frames the page fetches."""
    return {"stream": stream, "row": plain_row(row), "evidence": [at.timestamp() for at in evidence(row)]}


def _word(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: is missing")
    return value


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < 1e11
    except ValueError:
        return False
