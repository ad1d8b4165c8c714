"""Who may see anything: anybody on this machine without a token, else who bears it, as a header or by the page's sign-in.

Plain ASGI, so that it stands before every route, those of MCP included. Without a token the name that a client calls the server
by must be one of this machine: a page of another site could otherwise have its own name point here (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from typing import Any

from connectors.extras import optional

responses = optional("starlette.responses")
requests = optional("starlette.requests")

__all__ = ["Access", "is_loopback"]

_COOKIE = "streambank"
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_LONGEST_FORM = 4096

_SIGN_IN = """<!doctype html><meta charset="utf-8"><title>Streambank</title><meta name="viewport" content="width=device-width">
<style>body{font:16px system-ui;margin:20vh auto;max-width:22rem;color:#223}input,button{font:inherit;padding:.5rem;width:100%;
box-sizing:border-box;margin:.3rem 0}p{color:#a22}</style><form method="post" action="/sign-in"><label>Token
<input type="password" name="token" autofocus autocomplete="current-password"></label><button>Sign in</button>WRONG</form>"""


def is_loopback(host: str) -> bool:
    """Return whether an address is of this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Access:
    """Lets requests through to ``app``."""

    def __init__(self, app: Any, *, token: str | None, secure: bool) -> None:
        self._app, self._token, self._secure = app, token, secure
        self._signed_in = secrets.token_urlsafe(32)
        """Value of the cookie; a restart signs everybody out."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = requests.Request(scope, receive)
        refusal = await self._refusal(request)
        await (self._app if refusal is None else refusal)(scope, receive, send)

    async def _refusal(self, request: Any) -> Any:
        """Return what to say in place of the app; None where it may answer."""
        if self._token is None:
            if request.url.hostname in _LOCAL_NAMES:
                return None
            return responses.PlainTextResponse("this server answers to names of its own machine only; set a token", 403)
        if request.url.path == "/sign-in" and request.method == "POST":
            return await self._sign_in(request)
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if _same(given, self._token) or _same(request.cookies.get(_COOKIE, ""), self._signed_in):
            return None
        headers = {"WWW-Authenticate": "Bearer"}
        if request.url.path == "/" and request.method == "GET":
            return responses.HTMLResponse(_SIGN_IN.replace("WRONG", ""), 401)
        message = "the header 'Authorization: Bearer <token>' is missing or its token is wrong"
        body = {"error": {"message": message, "type": "authentication_error", "code": "invalid_api_key", "param": None}}
        return responses.JSONResponse(body, 401, headers)

    async def _sign_in(self, request: Any) -> Any:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_FORM:
                return responses.PlainTextResponse("too long", 413)
        from urllib.parse import parse_qs

        [given] = parse_qs(body.decode(errors="replace")).get("token", [""])[:1]
        if not _same(given, str(self._token)):
            return responses.HTMLResponse(_SIGN_IN.replace("WRONG", "<p>This is not the token.</p>"), 401)
        answer = responses.RedirectResponse("/", 303)
        answer.set_cookie(_COOKIE, self._signed_in, httponly=True, samesite="strict", secure=self._secure)
        return answer


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
