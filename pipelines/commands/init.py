"""``streambank init``: a first pipeline file from three choices, or the folder of the first example.

A choice is a few lines of the file, with comments that say what to change; what fits together is told by the kind of rows that
passes between them. Everything that it writes passes ``check`` where the input is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from connectors.errors import ConfigError, nearest

__all__ = [
    "EXAMPLES",
    "INPUTS",
    "OUTPUTS",
    "TASKS",
    "Choice",
    "example_text",
    "outputs_of",
    "pipeline_text",
    "require",
    "tasks_of",
    "write_example",
]

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
"""Folder of the examples that come with the package, one folder each."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that can be chosen."""

    says: str
    """What the user reads."""
    lines: tuple[str, ...]
    """Of the node, below its name; ``{place}``, ``{name}`` and ``{input}`` are filled in."""
    takes: tuple[str, ...] = ()
    """Kinds of rows that it can take; of inputs: none."""
    gives: str = ""
    """The kind of rows that it gives."""
    place: str = ""
    """Of inputs: the default answer to the question where that is; empty: nowhere."""
    output: str = ""
    """Of tasks: the output with a name that is written."""
    sources: tuple[str, ...] = ()
    """Of tasks: lines of a further source, of questions or prompts."""


_QUESTIONS = (
    '  questions:                      # streambank ask {file} "..." --stream ID',
    "    type: requests",
    "    path: {name}/questions",
    '    columns: {{question_id: string, question: string, at: "timestamp[us, UTC]", at_offset_s: double, max_tokens: int32}}',
)
_PROMPTS = (
    "  prompts:                        # streambank prompt {file} label 1 --stream ID --at -20s",
    "    type: requests",
    "    path: {name}/prompts",
    '    columns: {{prompt_id: string, kind: string, at: "timestamp[us, UTC]", at_offset_s: double, state: int32,',
    "              aspect: string, boundary: bool, target: string, pinned: bool}}",
)

INPUTS: Mapping[str, Choice] = {
    "video": Choice(
        "video files", ("type: video", "path: {place}                 # one stream per file"), gives="frames", place="*.mp4"
    ),
    "images": Choice(
        "folders of pictures",
        ("type: images", "path: {place}                 # one stream per folder", "fps: 10"),
        gives="frames",
        place="pictures",
    ),
    "camera": Choice(
        "a live camera", ("type: camera", "cameras: {{gate: {place}}}      # stream: URL or device, …"),
        gives="frames", place="rtsp://127.0.0.1:8554/gate",
    ),
    "rgbd": Choice(
        "recorded depth cameras",
        ("type: rgbd", "path: {place}                 # a TUM, Open3D, Redwood or 7-Scenes folder, or a folder of them"),
        gives="depth",
        place="scans",
    ),
    "host": Choice(
        "sensors of this machine", ("type: host", "stream_id: here", "interval_s: 0.1", "channels: [cpu]"), gives="samples"
    ),
    "sensors": Choice(
        "recorded sensors in CSV files, one column per channel",
        (
            "type: csv",
            "path: {place}                 # one stream per file",
            "channels: all",
            "event_time_unit: rows         # no column of time; else event_time: COLUMN",
            "row_rate: 100",
        ),
        gives="samples",
        place="*.csv",
    ),
    "csv": Choice("rows of CSV files", ("type: csv", "path: {place}", "event_time_unit: rows"), gives="rows", place="*.csv"),
    "jsonl": Choice(
        "JSON lines", ("type: jsonl", "path: {place}", "event_time_unit: rows"), gives="rows", place="*.jsonl"
    ),
    "parquet": Choice("rows of Parquet files", ("type: parquet", "path: {place}"), gives="rows", place="*.parquet"),
}  # fmt: skip

TASKS: Mapping[str, Choice] = {
    "objects": Choice(
        "find objects (mamba)",
        (
            "type: mamba",
            "input: {input}",
            "checkpoint: package://mamba/shapes     # knows colored shapes; train your own: streambank train mamba --help",
            "write_topk: 12                # these three are of the small network; leave them out for published weights",
            "max_length: 600",
            "key_length: 120",
            "score_threshold: 0.3",
            "max_streams: 4",
        ),
        takes=("frames",),
        gives="boxes",
    ),
    "answers": Choice(
        "answer questions (rekv)",
        ("type: rekv", "input: {input}", "control: questions", "sample_fps: 1", "max_streams: 4", "device_gib: 0.5"),
        takes=("frames",),
        gives="answers",
        sources=_QUESTIONS,
    ),
    "sound": Choice(
        "make sound (specvqgan)",
        ("type: specvqgan", "input: {input}", "temperature: 0.3", "window_hop: 8", "max_streams: 4"),
        takes=("frames",),
        gives="sound",
        output="sound",
    ),
    "history": Choice(
        "choose the few past frames to see now (fourd_vla)",
        ("type: fourd_vla", "input: {input}", "window: 20", "keep: 5", "max_streams: 8"),
        takes=("depth",),
        gives="rows",
    ),
    "states": Choice(
        "tell states apart, and follow what you say of them (memprompttss)",
        ("type: memprompttss", "input: {input}", "control: prompts", "max_streams: 4"),
        takes=("samples",),
        gives="states",
        output="states",
        sources=_PROMPTS,
    ),
    "nothing": Choice("nothing: keep what comes in", (), takes=("frames", "depth", "samples", "rows")),
}

OUTPUTS: Mapping[str, Choice] = {
    "parquet": Choice("Parquet files", ("type: parquet", "input: {input}", "path: {name}/rows{exclude}"), takes=("any",)),
    "jsonl": Choice("JSON lines", ("type: jsonl", "input: {input}", "path: {name}/lines{exclude}"), takes=("any",)),
    "film": Choice(
        "films with the boxes drawn",
        ("type: annotated_video", "inputs: [{source}, {input}]", "path: {name}/film"),
        takes=("boxes",),
    ),
    "heard": Choice(
        "films with the sound",
        ("type: annotated_video", "inputs: [{source}, {input}]", "mux: sound", "path: {name}/film"),
        takes=("sound",),
    ),
    "rerun": Choice(
        "recordings for the Rerun viewer", ("type: rerun", "inputs: [{source}{and_input}]", "path: {name}/rrd"), takes=("any",)
    ),
    "wav": Choice("WAV files", ("type: wav", "input: {input}", "path: {name}/wav"), takes=("sound",)),
}  # fmt: skip


_NODES = {"parquet": "rows", "jsonl": "lines", "rerun": "recording"}
"""Outputs whose node has another name, since inputs have theirs."""


def tasks_of(input_: str) -> list[str]:
    """Return the tasks that take what an input gives."""
    return [name for name, task in TASKS.items() if INPUTS[input_].gives in task.takes]


def outputs_of(input_: str, task: str) -> list[str]:
    """Return the outputs that take what a task gives."""
    kind = TASKS[task].gives or INPUTS[input_].gives
    return [name for name, output in OUTPUTS.items() if kind in output.takes or output.takes == ("any",)]


def pipeline_text(name: str, file: str, input_: str, task: str, outputs: list[str], place: str | None = None) -> str:
    """Return a pipeline file. ``place``: where the input is. Raise ``ConfigError`` for choices that do not fit."""
    require("in", input_, list(INPUTS))
    require("do", task, tasks_of(input_))
    for output in outputs:
        require("out", output, outputs_of(input_, task))
    comes, does = INPUTS[input_], TASKS[task]
    works = task != "nothing"
    kind = does.gives or comes.gives
    made = f"{task}.{does.output}" if does.output else task
    words = {
        "name": name,
        "file": file,
        "place": _quoted(comes.place if place is None else place),
        "source": input_,
        "input": made if works else input_,
        "and_input": f", {made}" if works else "",
        "exclude": "\n    exclude: [image]" if not works and kind == "frames" else "",
    }
    lines = [
        f"# Made by streambank init: {comes.says}; {does.says}. `streambank describe TYPE` tells every option.",
        f"#   streambank check {file}",
        f"#   streambank run {file}            after an edit: streambank run {file} --fresh",
        f"name: {name}",
        f"state: {name}/state                # commits: --resume goes on from here",
        "epoch_s: 2                      # seconds between commits, at which rows become visible",
        "sources:",
        f"  {input_}:",
        *(f"    {line}" for line in comes.lines),
        *does.sources,
    ]
    if works:
        lines += ["operators:", f"  {task}:", *(f"    {line}".replace("{input}", input_) for line in does.lines)]
    lines += ["sinks:"]
    for output in outputs:
        lines += [f"  {_NODES.get(output, output)}:", *(f"    {line}" for line in OUTPUTS[output].lines)]
    return "\n".join(line.format(**words) for line in lines) + "\n"


def write_example(name: str, folder: Path) -> list[Path]:
    """Copy an example into a folder; return its files. Raise ``ConfigError`` where that would replace something."""
    known = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    require("example", name, known)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and not empty; name another folder")
    shutil.copytree(EXAMPLES / name, folder, dirs_exist_ok=True)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def example_text(folder: Path, files: list[Path]) -> str:
    """Return what is said about an example that was written, and what to type next."""
    listed = [f"  {path}" for path in files]
    return "\n".join(
        [
            "wrote",
            *listed,
            "next",
            f"  cd {folder}",
            "  streambank train mamba --annotations boxes.csv --init package://mamba/shapes --preset few --out weights",
            "  streambank run detect.yaml",
        ]
    )


def require(option: str, given: str, allowed: list[str]) -> None:
    """Raise ``ConfigError`` for a choice that is not among those that fit."""
    if given not in allowed:
        raise ConfigError(f"--{option} {given!r} does not fit{nearest(given, allowed)}; allowed here: {', '.join(allowed)}")


def _quoted(text: str) -> str:
    """Return a text as YAML takes it for a text, braces kept by ``format``."""
    plain = text and not set(text) & set("*&!%@`{}[],#?|<>='\"\\") and not text[0].isdigit() and ": " not in text
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
