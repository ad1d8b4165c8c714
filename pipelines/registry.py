"""The names that a pipeline file can use for ``type``, and where their classes are.

Nothing is imported before it is asked for: listing the names needs neither torch nor ray. ``module:Class`` names a class of
the user's own and is not registered anywhere.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from connectors import extras
from connectors.errors import ConfigError, nearest

__all__ = [
    "CONFIGS",
    "KINDS",
    "Entry",
    "Kind",
    "entries",
    "find",
    "implementation",
    "lacks",
    "load",
    "needs",
    "ready_pipelines",
]

Kind = Literal["source", "operator", "sink"]
KINDS: tuple[Kind, ...] = ("source", "operator", "sink")

OWN_PACKAGES = ("connectors", "models", "operators", "pipelines")
"""Top-level packages of the distribution beside ``streambank``."""

CONFIGS = Path(__file__).resolve().parent / "configs"
"""Folder of the ready pipelines."""

_BASES = {"source": "connectors.base:Source", "operator": "operators.base:Operator", "sink": "connectors.base:Sink"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered type."""

    kind: Kind
    name: str
    target: str
    """``module:Class``."""
    summary: str
    needs: tuple[str, ...] = ()
    """Modules of ``connectors.extras`` that it cannot run without."""


_ENTRIES = (
    Entry("source", "video", "connectors.sources.video:VideoSource", "video files, one stream per file", ("cv2",)),
    Entry("source", "images", "connectors.sources.images:ImagesSource", "folders of images, one stream per folder", ("cv2",)),
    Entry(
        "source", "audio", "connectors.sources.audio:AudioSource", "WAV, FLAC and other sound files, sound of videos", ("av",)
    ),
    Entry("source", "rgbd", "connectors.sources.rgbd:RgbdSource", "recorded RGB-D: TUM, Open3D, Redwood, 7-Scenes folders"),
    Entry(
        "source",
        "lerobot",
        "connectors.sources.lerobot:LeRobotSource",
        "LeRobot data sets, versions 3 and 2.1: one stream per episode",
        ("av",),
    ),
    Entry(
        "source",
        "mcap",
        "connectors.sources.mcap:McapSource",
        "MCAP recordings of robots: images, depth, cameras, transforms of ROS 1, ROS 2 and Foxglove",
        ("mcap", "mcap_ros2", "mcap_protobuf"),
    ),
    Entry("source", "camera", "connectors.sources.camera:CameraSource", "live cameras: RTSP, HTTP, devices", ("cv2",)),
    Entry("source", "host", "connectors.sources.host:HostSource", "telemetry of this machine: load, memory, disk, network"),
    Entry("source", "parquet", "connectors.sources.parquet:ParquetSource", "rows of Parquet files"),
    Entry("source", "csv", "connectors.sources.csv:CsvSource", "rows of CSV files"),
    Entry("source", "jsonl", "connectors.sources.jsonl:JsonlSource", "one JSON object per line"),
    Entry("source", "arrow", "connectors.sources.arrow:ArrowSource", "rows of Arrow IPC files and streams"),
    Entry(
        "source",
        "kafka",
        "connectors.sources.kafka:KafkaSource",
        "topics of Kafka: JSON, Arrow or frames, one split per partition",
        ("kafka",),
    ),
    Entry("source", "requests", "connectors.sources.requests:RequestsSource", "folder that questions and prompts are put into"),
    Entry(
        "operator",
        "mamba",
        "operators.mamba.declaration:MambaDeclaration",
        "video object detection with a memory per stream",
        ("cv2", "torchvision"),
    ),
    Entry(
        "operator",
        "reloop2",
        "operators.reloop2.declaration:ReLoop2Declaration",
        "click predictions corrected by a memory of labels",
    ),
    Entry(
        "operator",
        "rekv",
        "operators.rekv.declaration:ReKVDeclaration",
        "answers to questions about running videos",
        ("cv2", "transformers"),
    ),
    Entry(
        "operator",
        "fourd_vla",
        "operators.fourd_vla.declaration:FourDVLADeclaration",
        "the few past RGB-D frames that a robot's policy should see now, and the action of the 4D-VLA policy",
        ("cv2",),
    ),
    Entry(
        "operator",
        "videostreaming",
        "operators.videostreaming.declaration:VideoStreamingDeclaration",
        "answers about videos of any length from a few selected memories of clips",
        ("cv2", "transformers"),
    ),
    Entry(
        "operator",
        "prompttpp",
        "operators.prompttpp.declaration:PromptTPPDeclaration",
        "when the next event of each key comes and of which type, learned on while behavior drifts",
    ),
    Entry(
        "operator",
        "memprompttss",
        "operators.memprompttss.declaration:MemPromptTSSDeclaration",
        "states and segments of sensor streams that follow prompts about their past, present and future",
    ),
    Entry(
        "operator",
        "specvqgan",
        "operators.specvqgan.declaration:SpecVQGANDeclaration",
        "sound for silent video, of many streams at once",
        ("cv2", "torchvision"),
    ),
    Entry(
        "operator",
        "specvqgan_codec",
        "operators.specvqgan_codec.declaration:SpecVQGANCodecDeclaration",
        "sound as tokens of 0.27 kbit/s, and back",
        ("torchvision",),
    ),
    Entry(
        "operator",
        "resample",
        "operators.resample.declaration:ResampleDeclaration",
        "samples of sensors, of any rate, at even times",
    ),
    Entry(
        "operator",
        "ctr_windows",
        "operators.reloop2.declaration:CtrWindowsDeclaration",
        "logloss and AUC of click predictions per window",
    ),
    Entry("operator", "null", "operators.null.operator:NullOperator", "passes on keys and sizes of frames; for measuring"),
    Entry("sink", "parquet", "connectors.sinks.parquet:ParquetSink", "partitioned Parquet dataset"),
    Entry("sink", "arrow", "connectors.sinks.arrow:ArrowSink", "Arrow IPC files"),
    Entry("sink", "jsonl", "connectors.sinks.jsonl:JsonlSink", "JSON lines"),
    Entry("sink", "wav", "connectors.sinks.wav:WavSink", "one WAV file per stream, playable while it grows"),
    Entry("sink", "lerobot", "connectors.sinks.lerobot:LeRobotSink", "chosen history and actions as a LeRobot data set"),
    Entry("sink", "kafka", "connectors.sinks.kafka:KafkaSink", "topic of Kafka, exactly once by transactions", ("kafka",)),
    Entry("sink", "webhook", "connectors.sinks.webhook:WebhookSink", "JSON to a URL once rows are committed, at least once"),
    Entry(
        "sink", "rerun", "connectors.sinks.rerun:RerunSink", "recordings for the Rerun viewer, or a live one", ("rerun", "cv2")
    ),
    Entry("sink", "mqtt", "connectors.sinks.mqtt:MqttSink", "JSON messages to an MQTT broker, at least once", ("paho",)),
    Entry("sink", "flight", "connectors.sinks.flight:FlightSink", "Arrow Flight server for live subscribers"),
    Entry(
        "sink",
        "annotated_video",
        "connectors.sinks.annotated_video:AnnotatedVideoSink",
        "one MP4 per stream with detections drawn on it, and sound",
        ("av", "cv2"),
    ),
)


def entries(kind: Kind | None = None) -> list[Entry]:
    """List the registered types, of one kind or of all."""
    return [entry for entry in _ENTRIES if kind in (None, entry.kind)]


def find(name: str) -> list[Entry]:
    """Return the types called ``name`` (a source and a sink may share one). Raise ``ConfigError`` where there is none."""
    found = [entry for entry in _ENTRIES if entry.name == name]
    if not found:
        names = sorted({entry.name for entry in _ENTRIES})
        raise ConfigError(f"no source, operator or sink is called {name!r}{nearest(name, names)}; allowed: {', '.join(names)}")
    return found


def load(kind: Kind, name: str) -> type[Any]:
    """Return the class behind a registered name or behind ``module:Class``; of an operator, where it has one, what declares it.

    Raise ``ConfigError`` where the name is unknown, the module cannot be imported, or the class is no ``kind``.
    """
    known = {entry.name: entry.target for entry in entries(kind)}
    if name not in known and ":" not in name:
        raise ConfigError(
            f"unknown {kind} type {name!r}{nearest(name, known)}; allowed: {', '.join(known)}, or module:Class of your own"
        )
    loaded = _import(known.get(name, name), f"{kind} type {name!r}")
    base = _import(_BASES[kind], kind)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise ConfigError(f"{kind} type {name!r} is not a subclass of {_BASES[kind].replace(':', '.')}")
    if not isinstance(getattr(loaded, "Options", None), type):
        raise ConfigError(f"{kind} type {name!r} has no class attribute Options; declare its options dataclass there")
    return loaded


def implementation(declared: type[Any], name: str) -> type[Any]:
    """Return the class that does the work of an operator that ``load`` has returned: itself, or what it names as that."""
    target = vars(declared).get("implementation", "")
    if not target:
        return declared
    loaded = _import(target, f"operator type {name!r}")
    if not (isinstance(loaded, type) and issubclass(loaded, declared)):
        raise ConfigError(f"operator type {name!r}: its implementation {target!r} is not a subclass of {declared.__qualname__}")
    return loaded


def ready_pipelines() -> dict[str, Path]:
    """Return the pipeline files that come with the package, by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def lacks(kind: Kind, name: str) -> str | None:
    """Return what to install before a registered type can run here; None where nothing is missing."""
    return extras.missing(needs(kind, name))


def needs(kind: Kind, name: str) -> tuple[str, ...]:
    """Return the modules of ``connectors.extras`` that a registered type cannot run without."""
    return next((entry.needs for entry in entries(kind) if entry.name == name), ())


def _import(target: str, what: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{what}: module {module!r} cannot be imported: {error}{_advice(error, module)}") from error
    if not hasattr(loaded, attribute):
        raise ConfigError(f"{what}: module {module!r} has no {attribute!r}{nearest(attribute, vars(loaded))}")
    return getattr(loaded, attribute)


def _advice(error: ImportError, module: str) -> str:
    """Return what helps where an import of the user's own module failed, as the end of a sentence."""
    if isinstance(error, extras.MissingExtra):
        return ""
    if error.name is not None and error.name in extras.EXTRAS and (told := extras.missing([error.name])):
        return f"; {told}"
    if error.name is not None and module.startswith(error.name) and (top := error.name.partition(".")[0]) in OWN_PACKAGES:
        return f"; {top!r} is a package of Streambank's own: give your module another name"
    return ""
