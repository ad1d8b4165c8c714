"""Work for a client that may go away: then it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Gone", "until_gone"]

T = TypeVar("T")


class Gone(Exception):
    """The client has closed its connection."""


async def until_gone(request: Any, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns. Raise ``Gone`` where the client has gone before; ``work`` is cancelled then.

    To be called once the request's body has been read.
    """
    working = asyncio.ensure_future(work)

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
