"""A headless Chromium, where there is one."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_browser = pytest.mark.skipif(_CHROMIUM is None, reason="Chromium is not installed")


def shown(page: Path, *, until: str = "") -> str:
    """Open a page; return the document as it is when it holds ``until``, after its scripts have run and its films were loaded.

    Chromium waits for films as long as it is told to, so a busy machine gets longer.
    """
    document = ""
    for seconds in (5, 30, 120):
        arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}",
            f"--timeout={seconds * 1000}", "--allow-file-access-from-files", "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run([str(_CHROMIUM), *arguments], capture_output=True, text=True, timeout=240, check=True)
        document = done.stdout
        if until in document and document:
            break
    return document


class Tab:
    """A page of a headless Chromium that stays open, driven over a pipe by Chromium's own protocol."""

    def __init__(self, url: str, profile: Path, *, width: int = 1100, height: int = 900) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def wire() -> None:  # the browser reads descriptor 3 and writes 4
            held = (fcntl.fcntl(to_browser, fcntl.F_DUPFD, 10), fcntl.fcntl(from_browser, fcntl.F_DUPFD, 10))
            for at, descriptor in zip((3, 4), held, strict=True):
                os.dup2(descriptor, at)

        arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            f"--window-size={width},{height}", "about:blank",
        ]  # fmt: skip
        self._browser = subprocess.Popen(
            [str(_CHROMIUM), *arguments], preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._buffer = 0, b""
        [target] = [one for one in self._call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self._session = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        self.go(url)

    def go(self, url: str) -> None:
        """Open a page."""
        self._call("Page.navigate", self._session, url=url)

    def value(self, script: str) -> Any:
        """Return what an expression of JavaScript is, awaited."""
        result = self._evaluate(script)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str, *, patience_s: float = 240.0) -> Any:
        """Return the value of an expression once it is true; one that fails is not: what it reads may not be there yet."""
        until_s = time.monotonic() + patience_s
        while True:
            result = self._evaluate(script)
            value = None if "exceptionDetails" in result else result["result"].get("value")
            if value:
                return value
            assert time.monotonic() < until_s, f"not true within {patience_s:g} s: {script}; the page: {self.text()}; {result}"
            time.sleep(0.1)

    def text(self) -> str:
        """Return the words of the page."""
        return str(self.value("document.body ? document.body.innerText : ''"))

    def screenshot(self, file: Path) -> None:
        """Write a PNG."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", self._session)["data"]))

    def close(self) -> None:
        """End the browser."""
        self._browser.terminate()
        self._browser.wait(60)
        os.close(self._out)
        os.close(self._in)

    def _evaluate(self, script: str) -> dict[str, Any]:
        return self._call("Runtime.evaluate", self._session, expression=script, awaitPromise=True, returnByValue=True)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                read = os.read(self._in, 1 << 20)
                assert read, "the browser has ended"
                self._buffer += read
            text, _, self._buffer = self._buffer.partition(b"\0")
            reply = json.loads(text)
            if reply.get("id") == self._number:
                assert "error" not in reply, reply["error"]
                result: dict[str, Any] = reply["result"]
                return result
