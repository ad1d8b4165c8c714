"""Packages that only some pipelines need, and the extra of the distribution that installs each.

A module that uses one binds it lazily, ``cv2 = optional("cv2")``, or imports it at the place of use, ``need("ray", ...)``.
Either way one message names what is missing and what to install. Standard library only.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from connectors.errors import StreambankError, first_line

__all__ = ["EXTRAS", "MissingExtra", "install_command", "missing", "need", "opencv_problem", "optional"]


@dataclass(frozen=True, slots=True)
class _Package:
    """One package outside of the core."""

    extra: str
    distribution: str


EXTRAS: Mapping[str, _Package] = {
    "cv2": _Package("vision", "opencv-python"),
    "av": _Package("vision", "av"),
    "torchvision": _Package("vision", "torchvision"),
    "decord": _Package("vision", "decord"),
    "ray": _Package("ray", "ray[default]"),
    "kafka": _Package("kafka", "kafka-python"),
    "crc32c": _Package("kafka", "crc32c"),
    "open3d": _Package("rgbd", "open3d"),
    "huggingface_hub": _Package("hub", "huggingface_hub"),
    "pandas": _Package("tables", "pandas"),
    "polars": _Package("tables", "polars"),
    "duckdb": _Package("tables", "duckdb"),
    "rerun": _Package("rerun", "rerun-sdk"),
    "plotly": _Package("report", "plotly"),
    "mcap": _Package("mcap", "mcap"),
    "mcap_ros2": _Package("mcap", "mcap-ros2-support"),
    "mcap_protobuf": _Package("mcap", "mcap-protobuf-support"),
    "paho": _Package("mqtt", "paho-mqtt"),
    "starlette": _Package("serve", "starlette"),
    "uvicorn": _Package("serve", "uvicorn"),
    "mcp": _Package("serve", "mcp"),
    "zstandard": _Package("mcap", "zstandard"),
    "lz4": _Package("mcap", "lz4"),
    "transformers": _Package("rekv", "transformers"),
    "torchcodec": _Package("torchcodec", "torchcodec"),
}
"""Top-level module → the extra of pyproject.toml that installs it."""


_MOST_PIXELS = 1 << 28
"""Of one image that OpenCV decodes, 16,384 x 16,384: a file of a few megabytes must not unpack to more than a memory holds."""


class MissingExtra(StreambankError, ImportError):
    """A package of an extra is not installed, or does not load. Not a ``ValueError``: it is never bad data of a stream."""


def missing(modules: Iterable[str]) -> str | None:
    """Return what to install where some of ``modules`` (keys of ``EXTRAS``) are not installed, else None. Imports none."""
    absent = [EXTRAS[module] for module in modules if not _is_installed(module)]
    if not absent:
        return None
    names = " and ".join(package.distribution for package in absent)
    return f"{names} {'is' if len(absent) == 1 else 'are'} not installed; run: {_command(absent)}"


def install_command(modules: Iterable[str]) -> str:
    """Return the command that installs the extras of ``modules``."""
    return _command([EXTRAS[module] for module in modules])


def need(module: str, who: str) -> Any:
    """Import ``module`` and return it. Raise ``MissingExtra`` that says for ``who`` it is needed and what to install."""
    if module == "cv2":  # which reads this once
        os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(_MOST_PIXELS))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = EXTRAS[top]
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            wrong = f"{who} needs {package.distribution}, which is not installed; run: {_command([package])}"
        else:
            wrong = (
                f"{who} needs {package.distribution}, which is installed but does not load: {error}; install the system "
                f"library that this names, or reinstall: pip install --force-reinstall '{package.distribution}'"
            )
        raise MissingExtra(wrong, name=top) from error


def opencv_problem(error: Exception) -> str:
    """Return in one line why OpenCV did not decode an image."""
    if "CV_IO_MAX_IMAGE_PIXELS" in str(error):
        limit = int(os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", 1 << 30))
        return f"it has more than {limit:,} pixels; OPENCV_IO_MAX_IMAGE_PIXELS in the environment allows more"
    return first_line(error)


def optional(module: str) -> Any:
    """Return a stand-in for ``module`` that imports it when something of it is first used, as ``need`` does."""
    if module.partition(".")[0] not in EXTRAS:
        raise KeyError(f"{module} belongs to no extra; add it to connectors.extras.EXTRAS and pyproject.toml")
    return _Lazy(module, sys._getframe(1).f_globals["__name__"])


class _Lazy(ModuleType):
    """Looks every name up in the module it stands for."""

    def __init__(self, module: str, user: str) -> None:
        super().__init__(module)
        self._user = user
        self._module: ModuleType | None = None

    def __getattr__(self, name: str) -> Any:  # called only for what is not in __dict__
        if self._module is None:
            self._module = need(self.__name__, self._user)
        return getattr(self._module, name)


def _is_installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None  # None: importing it is forbidden
    return importlib.util.find_spec(module) is not None


def _command(packages: Iterable[_Package]) -> str:
    return f"pip install 'streambank[{','.join(sorted({package.extra for package in packages}))}]'"
