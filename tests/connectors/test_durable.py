"""``connectors.durable``: a file is there as a whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from connectors import durable

_ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_replaces_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    durable.write(target, b"first")
    durable.write(target, b"second")
    assert target.read_bytes() == b"second"
    assert names(tmp_path) == ["a.json"]


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    durable.write(target, b"first")
    with pytest.raises(OSError, match="disk is full"), durable.replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("disk is full")
    assert target.read_bytes() == b"first"
    assert names(tmp_path) == ["a.json"]


def test_a_killed_writer_leaves_the_old_file_and_a_name_that_tells_it_is_incomplete(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    durable.write(target, b"first")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom connectors import durable\n"
        "with durable.replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half')\n    os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=_ROOT, check=False)
    assert done.returncode == 9
    assert target.read_bytes() == b"first"
    assert [durable.is_leftover(tmp_path / name) for name in names(tmp_path)] == [True, False]


def test_everything_is_on_the_device_before_the_name_is_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        kind = "folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "file"
        seen.append(f"flush {kind}")
        fsync(handle)

    def noted_replace(path: Path, target: Path) -> Path:
        seen.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    durable.write(tmp_path / "a", b"1")
    assert seen == ["flush file", "rename", "flush folder"]


def test_folders_are_made_with_all_their_parents(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    durable.make_folders(folder)
    durable.make_folders(folder)
    assert folder.is_dir()


def test_two_processes_that_write_one_file_do_not_share_a_temporary_name(tmp_path: Path) -> None:
    with durable.replacing(tmp_path / "a") as temporary:
        assert str(os.getpid()) in temporary.name
        temporary.write_bytes(b"1")
