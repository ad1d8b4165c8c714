"""What Tab offers: commands, options, choices, names and files; in a real bash, and without anything heavy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from pipelines.cli import cli
from pipelines.commands.train import methods
from pipelines.demos.runner import DEMOS
from pipelines.registry import entries, ready_pipelines

COMMANDS = sorted(name for name, command in cli.commands.items() if not command.hidden)


def offered(line: str) -> list[str]:
    """Return what is offered for the last word of a line, as ``TYPE,VALUE`` where it is not plain."""
    *words, last = line.split(" ")
    found = BashComplete(cli, {}, "streambank", "_STREAMBANK_COMPLETE").get_completions(words, last)
    return [item.value if item.type == "plain" else f"{item.type},{item.value}" for item in found]


def test_commands_are_offered() -> None:
    assert offered("") == COMMANDS and len(COMMANDS) > 10
    assert offered("de") == ["demo", "describe"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_offered_and_the_choices_of_one_that_has_some(command: str) -> None:
    own = {name for option in cli.commands[command].params for name in option.opts if name.startswith("--")}
    assert own <= set(offered(f"{command} --"))
    assert offered(f"{command} --log-format ") == ["text", "json"]


def test_names_are_offered() -> None:
    assert offered("run --runner ") == ["local", "ray"]
    assert offered("demo ") == list(DEMOS) and offered("demo re") == ["rekv", "reloop2"]
    assert offered("train ") == methods()
    assert set(offered("describe ")) == {entry.name for entry in entries()} | {"pipeline"}


@pytest.mark.parametrize("command", ["run", "check", "ask", "prompt", "serve"])
def test_pipeline_files_and_ready_pipelines_are_offered_else_any_file(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert offered(f"{command} ") == ["file,"]
    for name in ("mamba_mine.yaml", "cameras.yml", "notes.txt"):
        (tmp_path / name).touch()
    assert offered(f"{command} ") == ["cameras.yml", "mamba_mine.yaml"]
    assert offered(f"{command} mamba_") == ["mamba_mine.yaml", *(n for n in ready_pipelines() if n.startswith("mamba_"))]
    assert offered(f"{command} no") == ["file,no"]
    assert offered(f"{command} {tmp_path}/ca") == [f"{tmp_path}/cameras.yml"]
    assert offered(f"{command} nowhere/ca") == ["file,nowhere/ca"]


def test_bash_takes_the_line_of_the_docs_and_completes_without_torch(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    line = 'eval "$(_STREAMBANK_COMPLETE=bash_source streambank)"'
    assert line in (Path(__file__).resolve().parents[2] / "docs" / "command_line.md").read_text()
    (tmp_path / "torch.py").write_text("raise RuntimeError('completion imports torch')")
    script = f"""{line}
complete -p streambank
COMP_WORDS=(streambank describe mam) COMP_CWORD=2
_streambank_completion streambank
echo "${{COMPREPLY[@]}}"
"""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env.get("PYTHONPATH", "")])
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, env=env, timeout=240)
    assert done.returncode == 0 and not done.stderr, done.stderr
    *_, registered, found = done.stdout.splitlines()
    assert registered.endswith("-F _streambank_completion streambank") and found == "mamba"
