"""Weights by the name of a repository, against a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from loopback_hub import COMMIT, hub

from connectors.errors import CheckpointMismatch
from models.hub import weights_file, weights_place
from pipelines.registry import load

WEIGHTS = Path(__file__).resolve().parents[2] / "models"
SHIPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba/weights/shapes.safetensors", {}),
    "rekv": ("rekv/weights/shapes.safetensors", {}),
    "videostreaming": ("videostreaming/weights/shapes.safetensors", {}),
    "fourd_vla": ("fourd_vla/weights/past.safetensors", {"mode": "act", "keep": 4, "instruction": "point"}),
    "memprompttss": ("memprompttss/weights/two_frequencies.safetensors", {}),
    "prompttpp": ("prompttpp/weights/drift.safetensors", {}),
}
"""Operator → the weights in the package, and what an operator needs besides."""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, list[str]]]:
    repositories = {
        "me/one": {"a.safetensors": b"weights", "evil.py": b"code", "model.pth": b"pickle"},
        "me/folder": {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"pickle"},
        "me/two": {"a.safetensors": b"a", "b.safetensors": b"b"},
        "me/none": {"model.pth": b"pickle"},
        **{f"us/{name}": {Path(file).name: (WEIGHTS / file).read_bytes()} for name, (file, _) in SHIPPED.items()},
    }
    with hub(repositories) as given:
        yield given


@pytest.fixture
def requests(served: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was asked of the hub, by an empty cache."""
    address, seen = served
    use(address, monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    seen.clear()
    return seen


def use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for HF_ENDPOINT, which is read once."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_path_and_the_weights_of_the_package_stay_what_they_are(requests: list[str]) -> None:
    assert weights_place("some/file.pth") == Path("some/file.pth")
    assert weights_file(None, Path("shipped")) == Path("shipped")
    assert requests == []


def test_weights_of_the_package_go_by_name(requests: list[str]) -> None:
    assert weights_file("package://mamba/shapes") == WEIGHTS / "mamba/weights/shapes.safetensors"
    with pytest.raises(
        CheckpointMismatch, match=r"no weights 'package://mamba/shape' come.*did you mean 'package://mamba/shapes'"
    ):
        weights_place("package://mamba/shape")
    assert requests == []


def test_the_only_safetensors_file_is_the_weights(requests: list[str]) -> None:
    for read in (weights_file, weights_place):
        assert read("hf://me/one").read_bytes() == b"weights"


def test_of_a_repository_only_files_without_code_are_taken(requests: list[str]) -> None:
    assert names(weights_place("hf://me/folder")) == {"config.json", "model.safetensors"}
    weights_place("hf://me/one")
    assert not [request for request in requests if "evil" in request or ".pth" in request or ".bin" in request]


def test_a_file_and_a_revision_may_be_named(requests: list[str]) -> None:
    found = weights_file("hf://me/one@v1/model.pth")
    assert found.read_bytes() == b"pickle"
    assert COMMIT in found.parts
    assert "HEAD /me/one/resolve/v1/model.pth" in requests


def test_what_was_fetched_is_used_again_and_offline_nothing_else(requests: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    weights_file("hf://me/one")
    fetched = [request for request in requests if request.startswith("GET") and request.endswith(".safetensors")]
    weights_file("hf://me/one")
    assert [request for request in requests if request.startswith("GET") and request.endswith(".safetensors")] == fetched
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    requests.clear()
    assert weights_file("hf://me/one").read_bytes() == b"weights"
    with pytest.raises(CheckpointMismatch, match=r"HF_HUB_OFFLINE is set\), and the cache has no copy of me/folder"):
        weights_place("hf://me/folder")
    assert requests == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://me/nobody", "there is no me/nobody, or it is private: check the name, or set HF_TOKEN"),
        ("hf://me/one@v9", "me/one has no revision 'v9'"),
        ("hf://me/one/x.safetensors", "me/one at its main revision has no file 'x.safetensors'"),
        ("hf://me/two", "holds 2 safetensors files (a.safetensors, b.safetensors); name the one to load: hf://me/two/FILE"),
        ("hf://me/none", "holds no safetensors file; name the one to load: hf://me/none/FILE"),
        ("hf://me", "is no address of weights; write hf://ORG/NAME"),
        ("hf://me/one/../../etc/passwd", "is no address of weights"),
    ],
)
def test_what_cannot_be_had_is_said(address: str, said: str, requests: list[str]) -> None:
    with pytest.raises(CheckpointMismatch) as caught:
        weights_file(address)
    assert said in str(caught.value)


def test_a_hub_out_of_reach_is_said(requests: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(CheckpointMismatch, match=r"hf://me/one cannot be fetched: .*the hub is out of reach"):
        weights_file("hf://me/one")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_method_takes_weights_of_a_hub(name: str, requests: list[str]) -> None:
    file, more = SHIPPED[name]
    kind: Any = load("operator", name)

    def schema(checkpoint: str) -> Any:
        return kind.examine(kind.Options(checkpoint=checkpoint, **more), name)

    assert schema(f"hf://us/{name}") == schema(str(WEIGHTS / file))
    assert any(f"/us/{name}" in request for request in requests)
