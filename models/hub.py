"""Where weights lie: a path; ``package://METHOD/NAME``, weights that come with the package; or an address
``hf://ORG/NAME[@REVISION][/FILE]`` that is fetched from a Hugging Face hub once.

What was fetched stays in that library's own cache, which its environment variables set (HF_HOME, HF_TOKEN, HF_ENDPOINT); with
HF_HUB_OFFLINE=1 nothing but the cache is looked at. Of a whole repository only files without code are taken: safetensors,
settings and words.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from connectors.errors import CheckpointMismatch, nearest
from connectors.extras import need

__all__ = ["SCHEME", "SHIPPED", "is_address", "shipped_names", "weights_file", "weights_folder", "weights_place"]

SCHEME = "hf://"
SHIPPED = "package://"
_FORM = "hf://ORG/NAME, hf://ORG/NAME@REVISION or hf://ORG/NAME@REVISION/FILE"
_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>.+))?", re.ASCII)
_KINDS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


def is_address(checkpoint: str | os.PathLike[str]) -> bool:
    """Return whether this names weights of a hub."""
    return str(checkpoint).startswith(SCHEME)


def weights_folder(checkpoint: str | os.PathLike[str] | None, shipped: Path | None = None) -> Path:
    """Return where ``checkpoint`` lies, fetched where need be; ``shipped`` where it is None.

    Raises ``CheckpointMismatch`` for what cannot be fetched, ``MissingExtra`` without huggingface_hub.
    """
    if checkpoint is None:
        if shipped is None:
            raise CheckpointMismatch("no checkpoint is given, and none comes with the package")
        return shipped
    if str(checkpoint).startswith(SHIPPED):
        return _shipped(str(checkpoint))
    return _fetched(str(checkpoint)) if is_address(checkpoint) else Path(checkpoint)


def shipped_names() -> dict[str, Path]:
    """Return what comes with the package: ``package://METHOD/NAME`` → its file."""
    files = sorted(Path(__file__).resolve().parent.glob("*/weights/*.safetensors"))
    return {f"{SHIPPED}{file.parent.parent.name}/{file.stem}": file for file in files}


def weights_place(checkpoint: str | os.PathLike[str] | None, shipped: Path | None = None) -> Path:
    """Return the file or folder; a repository with one safetensors file and no config.json is that file. Raises as above."""
    place = weights_folder(checkpoint, shipped)
    if checkpoint is None or not is_address(checkpoint) or not place.is_dir():
        return place
    found = _safetensors(place)
    return place / found[0] if len(found) == 1 and not (place / "config.json").exists() else place


def weights_file(checkpoint: str | os.PathLike[str] | None, shipped: Path | None = None) -> Path:
    """Return the one file; of a repository without FILE its only safetensors file. Raises as above."""
    place = weights_folder(checkpoint, shipped)
    if checkpoint is None or not is_address(checkpoint) or not place.is_dir():
        return place
    found = _safetensors(place)
    if len(found) != 1:
        names = f"holds {len(found)} safetensors files ({', '.join(found[:5])})" if found else "holds no safetensors file"
        raise CheckpointMismatch(f"{checkpoint} {names}; name the one to load: {checkpoint}/FILE")
    return place / found[0]


def _safetensors(folder: Path) -> list[str]:
    """Return the names of such files below a folder; none where it is a file."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


def _shipped(address: str) -> Path:
    known = shipped_names()
    if address not in known:
        raise CheckpointMismatch(
            f"no weights {address!r} come with the package{nearest(address, known)}; there are: {', '.join(known)}"
        )
    return known[address]


def _fetched(address: str) -> Path:
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in address.split("/"):
        raise CheckpointMismatch(f"{address!r} is no address of weights; write {_FORM}")
    hub, errors = (need(module, f"checkpoint {address}") for module in ("huggingface_hub", "huggingface_hub.errors"))
    try:
        if match["file"]:
            return Path(hub.hf_hub_download(match["repository"], match["file"], revision=match["revision"]))
        folder = Path(hub.snapshot_download(match["repository"], revision=match["revision"], allow_patterns=list(_KINDS)))
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
        raise CheckpointMismatch(f"{address} cannot be fetched: {_reason(errors, error, match)}") from error
    if not folder.is_dir():
        raise CheckpointMismatch(f"{address} holds no safetensors file; name the one to load: {address}/FILE")
    return folder


def _reason(errors: Any, error: Exception, match: re.Match[str]) -> str:
    """Return what was wrong and what to do."""
    repository = match["repository"]
    at = f"{repository} at {match['revision'] or 'its main revision'}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} asks for consent: give it on its page, then set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {repository}, or it is private: check the name, or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {match['revision']!r}"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return f"the hub is out of reach (or HF_HUB_OFFLINE is set), and the cache has no {match['file'] or 'copy'} of {at}"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{at} has no file {match['file']!r}"
    return " ".join(str(error).split()) or type(error).__name__
