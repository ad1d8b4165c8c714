"""A headless Chromium, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

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
