"""An environment in which only the wheel of this checkout and the core dependencies are installed.

The core is not fetched again (torch alone takes minutes and gigabytes): the environment sees the files of the distributions
that the wheel's own metadata asks for, and of what those ask for, through links into the environment that runs the tests.
Nothing else of that environment is visible, so what the metadata forgets is missing here, too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("connectors", "models", "operators", "pipelines", "streambank.py", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment without pip."""

    folder: Path
    site: Path

    def run(self, *command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment (``python``, ``streambank``) there."""
        variables = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1", **variables}
        program = self.folder / "bin" / str(command[0])
        return subprocess.run(
            [program, *command[1:]], cwd=cwd, env=variables, capture_output=True, text=True, timeout=240, check=False
        )


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, so that nothing is written into the checkout; no network."""
    source = folder / "source"
    source.mkdir()
    for part in PARTS:
        path = ROOT / part
        if path.is_dir():
            shutil.copytree(path, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(path, source / part)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Environment:
    """Make the environment in ``folder / "env"`` and install the wheel into it."""
    place = folder / "env"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(place)
    pip("--python", place / "bin" / "python", "install", "--no-deps", "--no-index", "--no-compile", wheel)
    (site,) = place.glob("lib/python3.*/site-packages")
    core = folder / "core"
    core.mkdir()
    for found in needed(wheel):
        link(found, core)
    (site / "core.pth").write_text(f"{core}\n")
    return Environment(place, site)


def pip(*arguments: str | Path) -> None:
    """Run pip of this environment. A failure shows what it said."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def metadata(wheel: Path) -> dict[str, list[str]]:
    """Return the wheel's metadata, field → values."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        message = Parser().parsestr(archive.read(name).decode())
    return {key: [str(value) for value in message.get_all(key) or []] for key in message}


def needed(wheel: Path) -> list[Distribution]:
    """Return the installed distributions that the wheel asks for without extras, and those that these ask for."""
    found: dict[str, Distribution] = {}
    waiting = [(Requirement(text), frozenset[str]()) for text in metadata(wheel)["Requires-Dist"]]
    while waiting:
        requirement, extras = waiting.pop()
        if requirement.marker is not None and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in (extras or {""})
        ):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found and not requirement.extras:
            continue
        found[name] = distribution(requirement.name)
        waiting += [(Requirement(text), frozenset(requirement.extras)) for text in found[name].requires or []]
    return list(found.values())


def link(found: Distribution, folder: Path) -> None:
    """Link everything of a distribution that lies at the top of its ``site-packages`` into ``folder``."""
    for top in {path.parts[0] for path in found.files or []} - {"..", "__pycache__"}:
        if not (folder / top).exists():
            (folder / top).symlink_to(Path(str(found.locate_file(top))))
