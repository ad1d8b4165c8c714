"""What docs/benchmarks.md and the README say: each claim with the benchmark that measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import result_words as words
from benchmarks.result_words import Result

__all__ = ["CLAIMS", "README_CLAIMS", "Claim"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One row of the page."""

    subject: str
    """Heading under which it stands."""
    result: str
    """Name of the benchmark, whose result has the same name."""
    claim: str
    figure: Callable[[Result], str]
    arguments: str = ""
    """Of the command."""
    goal: str = ""
    """Which of the result's goals is this one's, where ``holds`` says of several whether they are reached."""

    @property
    def command(self) -> str:
        """The command that measures it."""
        return f"python -m benchmarks.{self.result} {self.arguments}".strip()


_ENGINE, _MAMBA, _RELOOP2, _REKV = "Engine", "MAMBA", "ReLoop2", "ReKV"
_VIDEO, _FOURD, _TSS, _TPP, _SOUND = "VideoStreaming", "4D-VLA", "MemPromptTSS", "PromptTPP", "SpecVQGAN"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        _ENGINE,
        "keyed_stream",
        "keyed running mean, 500,000 JSON lines, a commit a second, against bytewax 0.21 with recovery",
        words.keyed,
    ),
    Claim(_ENGINE, "decode_throughput", "decode → null → Parquet, against a bare OpenCV loop", words.decode),
    Claim(_ENGINE, "fault_soak", "`kill -9` at 30 random moments per runner, then `--resume`", words.soak),
    Claim(
        _ENGINE,
        "kafka_soak",
        "`kill -9` of driver, actors, coordinator and broker under Kafka → MAMBA → Kafka and Parquet",
        words.kafka_soak,
    ),
    Claim(
        _ENGINE,
        "kafka_throughput",
        "Kafka source and transactional sink against a bare kafka-python poll loop and producer, one broker here",
        words.kafka,
    ),
    Claim(_ENGINE, "memory_flat", "1,000,000 rows of replay after warm-up; 2 minutes of 720p in real time", words.flat),
    Claim(_ENGINE, "many_files", "500,000 rows in 2,000 files, against one file", words.many_files),
    Claim(_ENGINE, "sink_throughput", "file sinks, 1,000,000 rows", words.sinks),
    Claim(
        _ENGINE,
        "flight_subscriber",
        "a Flight subscriber that reads one batch a second",
        lambda r: f"{r['ratio']:.2f} times the rows/s without it",
    ),
    Claim(_MAMBA, "mamba_memory_gain", "what the memory gains on fresh clips, 3 seeds", words.mamba_gain),
    Claim(
        _MAMBA,
        "memory_step",
        "memory step at full size, against copying, permuting and re-projecting as published",
        lambda r: f"{r['ratio']:.1f} times faster, difference {r['max_abs_difference']:.0e}",
    ),
    Claim(
        _MAMBA,
        "real_clips",
        "five real clips, full-size model from an official-layout checkpoint",
        words.real_clips,
    ),
    Claim(_MAMBA, "mamba_fps", "full size on the CPU (ResNet-101, short side 600) at 1, 4 and 16 streams", words.mamba_fps),
    Claim(_RELOOP2, "reloop2_drift", "clicks that drift, labels 1,000 impressions late, 3 seeds", words.reloop2_drift),
    Claim(_RELOOP2, "reloop2_drift", "40,000 MovieLens events", words.movielens),
    Claim(
        _RELOOP2,
        "reloop2_soak",
        "10,000,000 impressions with delayed labels through `streambank run`; kills",
        words.reloop2_soak,
    ),
    Claim(
        _RELOOP2,
        "sketch_throughput",
        "sketch of 70 arrays × 2^16, hash, read and write, exact, one core, against the plain form, whose sums are not",
        words.sketch,
    ),
    Claim(_RELOOP2, "knn_faiss", "nearest rows, add and search as often, one core, against faiss 1.15", words.faiss),
    Claim(_REKV, "rekv_memory_gain", "the small model on 60 unseen films of ten minutes, 1,200 questions", words.rekv_gain),
    Claim(
        _REKV,
        "rekv_speed",
        "against the published procedure taken literally, 8 layers, hidden 256, window 5,000, one thread",
        words.rekv_speed,
    ),
    Claim(
        _REKV,
        "rekv_day",
        "a day of video (43,200 frames, features given) through session and bank of three tiers",
        words.rekv_day,
    ),
    Claim(
        _REKV,
        "rekv_confidence",
        "the small model on 12 unseen films: nonsense called unsure, and right answers",
        words.confidence,
    ),
    Claim(
        _REKV,
        "standing_questions",
        "12 unseen films of ten minutes, 11 standing questions about one thing and 20 about several",
        words.standing("rekv"),
    ),
    Claim(_REKV, "rekv_policies", "policies for the bank: bytes, accuracy on the films", words.policies),
    Claim(
        _VIDEO,
        "videostreaming_memory_gain",
        "the small model on unseen films of ten minutes at equal video tokens",
        words.videostreaming_gain,
        "--films 4",
    ),
    Claim(
        _VIDEO,
        "standing_questions",
        "12 unseen films of ten minutes, 11 standing questions about one thing and 20 about several",
        words.standing("videostreaming"),
    ),
    Claim(_VIDEO, "videostreaming_memory_gain", "a question that needs memory propagation", words.propagation, "--films 4"),
    Claim(
        _VIDEO,
        "videostreaming_speed",
        "a clip and an answer after 1 minute and after 24 hours of video (small shape, features given, processor time)",
        words.videostreaming_speed,
    ),
    Claim(
        _FOURD,
        "fourd_vla_speed",
        "sampling, 16 streams, features of 432 numbers given, one core",
        lambda r: f"{words.per_s(r['given_features_frames_per_s'])} frames/s",
    ),
    Claim(
        _FOURD,
        "fourd_vla_speed",
        "with an encoder, against a plain implementation that encodes the window (the frames kept) again at each step",
        words.fourd_speed,
    ),
    Claim(
        _FOURD,
        "fourd_vla_coverage",
        "coverage of the last 20 frames by 5: still view with events of one frame; a real kitchen",
        words.fourd_coverage,
    ),
    Claim(_FOURD, "fourd_vla_memory", "sampling of 100,352 frames of 16 streams", words.fourd_memory),
    Claim(
        _FOURD,
        "fourd_vla_tasks",
        "a tiny policy told by a frame of the past (4 answers), 3 seeds",
        words.fourd_task("past"),
        "--tasks past",
    ),
    Claim(
        _FOURD,
        "fourd_vla_tasks",
        "tiny policies count flashes (3 answers), 3 seeds",
        words.fourd_task("count"),
        "--tasks count",
    ),
    Claim(
        _FOURD,
        "fourd_vla_tasks",
        "tiny policies say whether a red cube was there (2 answers), 3 seeds",
        words.fourd_task("seen"),
        "--tasks seen",
    ),
    Claim(
        _FOURD,
        "fourd_vla_tasks",
        "a tiny policy points at a cube seen from anywhere, 3 seeds",
        words.fourd_point,
        "--tasks point",
    ),
    Claim(
        _TSS,
        "memprompttss_speed",
        "the size of the pump data, 100 streams, whole operator, one core: windows a window and a quarter of one apart",
        words.tss_speed,
    ),
    Claim(_TSS, "memprompttss_speed", "32 windows again after one prompt, against the released modules", words.tss_again),
    Claim(
        _TSS,
        "memprompttss_gain",
        "names drawn anew for each series: accuracy far from one label prompt",
        words.tss_waves,
        goal="two_frequencies",
    ),
    Claim(
        _TSS,
        "memprompttss_gain",
        "USC-HAD, a subject that was not trained on, one network per seed: accuracy, and what prompts change",
        words.tss_people,
        "--data usc_had/",
        goal="usc_had",
    ),
    *(
        Claim(
            _TSS,
            "memprompttss_peers",
            f"covering of {what}; without and with one prompt for each {unit}",
            words.tss_peers(group),
            "--claspy DIR --peers ClaSP ClaSS --usc_had network.safetensors",
        )
        for group, what, unit in (
            ("two_frequencies", "three series of two frequencies", "state"),
            ("TSSB", "seven series of TSSB, which no network here was trained on", "segment"),
            ("USC-HAD, unseen subject", "USC-HAD, two files of a subject that was not trained on", "state"),
        )
    ),
    Claim(
        _TSS,
        "memprompttss_peers",
        "speed on the same series, one stream, one core (windows a quarter of one apart), means of the three data sets",
        words.tss_peers_speed,
        "--claspy DIR --peers ClaSP ClaSS --usc_had network.safetensors",
    ),
    Claim(
        _TPP,
        "prompttpp_drift",
        "simulated streams whose regimes change and return for all keys at once: the present regime, 95 % intervals over seeds",
        words.drift_current,
        goal="current",
    ),
    Claim(
        _TPP,
        "prompttpp_drift",
        "the same streams: what is forgotten of regimes that return",
        words.drift_forgotten,
        goal="forgotten",
    ),
    Claim(
        _TPP,
        "prompttpp_tables",
        "badges of StackOverflow, 100 keys, ten slices of time, each scored before it is learned, nothing tuned on them, "
        "against trivial floors",
        words.tpp_tables("stackoverflow"),
        "--data tpp/",
    ),
    Claim(
        _TPP,
        "prompttpp_tables",
        "the same on edits of 100 pages of Wikipedia; types are the nineteen most frequent editors of the first slice, and the "
        "others, who make nearly all edits of these pages",
        words.tpp_tables("wikipedia"),
        "--data tpp/",
    ),
    Claim(_TPP, "prompttpp_speed", "events scored and predicted, one core", words.tpp_speed),
    Claim(_SOUND, "specvqgan_gain", "the small codec on unseen rendered clips", words.sound_codec, "--clips 8 --train 0,1,2"),
    Claim(_SOUND, "specvqgan_gain", "sound from frames on unseen rendered clips", words.sound_gain, "--clips 8 --train 0,1,2"),
    Claim(
        _SOUND,
        "specvqgan_speed",
        "a window of sound at full size, against the published sampler taken literally (processor time)",
        words.sound_speed,
    ),
    Claim(
        _SOUND,
        "specvqgan_hour",
        "an hour of film, small networks, half a window of sound at a time, one thread",
        words.sound_hour,
    ),
)

README_CLAIMS: tuple[tuple[str, str, Callable[[Result], str]], ...] = (
    ("keyed_stream", "keyed running mean against bytewax, a commit a second", words.keyed),
    ("fault_soak", "`kill -9` at 30 random moments per runner", words.soak),
    ("mamba_memory_gain", "what MAMBA's memory gains on fresh clips", words.mamba_gain),
    ("rekv_memory_gain", "what ReKV's memory gains on films of ten minutes", words.rekv_gain),
)
"""Result, what was measured, figure."""
