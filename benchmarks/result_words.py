"""What the results of benchmarks say in words: one function for each figure of docs/benchmarks.md and the README."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = [
    "Result",
    "confidence",
    "decode",
    "drift_current",
    "drift_forgotten",
    "faiss",
    "flat",
    "fourd_coverage",
    "fourd_memory",
    "fourd_point",
    "fourd_speed",
    "fourd_task",
    "kafka",
    "kafka_soak",
    "keyed",
    "mamba_fps",
    "mamba_gain",
    "many_files",
    "movielens",
    "per_s",
    "policies",
    "propagation",
    "real_clips",
    "rekv_day",
    "rekv_gain",
    "rekv_speed",
    "reloop2_drift",
    "reloop2_soak",
    "sinks",
    "sketch",
    "soak",
    "sound_codec",
    "sound_gain",
    "sound_hour",
    "sound_speed",
    "standing",
    "tpp_speed",
    "tpp_tables",
    "tss_again",
    "tss_peers",
    "tss_peers_speed",
    "tss_people",
    "tss_speed",
    "tss_waves",
    "videostreaming_gain",
    "videostreaming_speed",
]

Result = Mapping[str, Any]


# How figures are written


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def per_s(rate: float) -> str:
    return f"{rate:,.0f}"


def _span(values: Iterable[float], digits: int = 2) -> str:
    """``0.12`` where all are the same, else ``0.12–0.34``."""
    texts = [f"{value:.{digits}f}" for value in sorted(values)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]}–{texts[-1]}"


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return sum(given) / len(given)


# The figures, one function per result where a line is too short


def mamba_gain(r: Result) -> str:
    mean = r["mean"]
    return (
        f"mAP50 {mean['causal']:.3f} with memory; {mean['control']:.3f} the same detector, trained as long, without; "
        f"{mean['wrong']:.3f} with another clip's bank"
    )


def mamba_fps(r: Result) -> str:
    def rates(levels: str) -> str:
        return ", ".join(f"{row['frames_per_s']:.2f}" for row in r["rows"] if row["levels"] == levels)

    def share(row: Result) -> float:
        stages = row["stages_ms_per_frame"]
        return sum(ms for stage, ms in stages.items() if "bank" in stage) / row["ms_per_frame"]

    most = max(share(row) for row in r["rows"])
    return (
        f"{rates('instance')} frames/s with the instance level; {rates('all')} with both; "
        f"bank reads and writes take at most {100 * most:.1f} %"
    )


def decode(r: Result) -> str:
    def ratios(runner: str) -> str:
        return " and ".join(f"{row['ratio']:.2f}" for row in r["rows"] if row["runner"] == runner)

    clips = ", ".join(dict.fromkeys(row["clip"] for row in r["rows"]))
    return f"local {ratios('local')}, ray {ratios('ray')} of its frames/s ({clips})"


def keyed(r: Result) -> str:
    local, ray = (r["sides"][side]["ratio_to_bytewax"] for side in ("local", "ray"))
    return f"local {local:.1f} times, ray {ray:.1f} times its events/s"


def soak(r: Result) -> str:
    runs = r["runners"].values()
    lost, doubled, left = (sum(run[name] for run in runs) for name in ("lost", "doubled", "staged_files_left"))
    rows = " and ".join(f"{run['rows']:,}" for run in runs)
    return f"{rows} rows of {r['rows']:,} ({', '.join(r['runners'])}), {lost} lost, {doubled} twice, {left} staged files left"


def kafka_soak(r: Result) -> str:
    runs = r["runners"].values()
    frames = sum(run["frames"] for run in runs)
    lost, doubled, changed = (sum(run["kafka"][n] + run["parquet"][n] for run in runs) for n in ("lost", "doubled", "changed"))
    kills = ", ".join(f"{name} {count}" for name, count in r["kills"].items())
    return f"{sum(r['kills'].values())} kills ({kills}): of {frames:,} frames {lost} lost, {doubled} twice, {changed} changed"


def kafka(r: Result) -> str:
    def ratios(side: str) -> str:
        return ", ".join(f"{case[side]:.2f}" for case in r["cases"].values())

    return f"source {ratios('source_ratio')} of its messages/s (JSON, Arrow, frames); sink {ratios('sink_ratio')}"


def flat(r: Result) -> str:
    table, video = r["table"]["growth_bytes"], r["video"]["growth_bytes"]
    return f"grows by {table / 1e6:.1f} MB; by {video / 1e6:.0f} MB"


def many_files(r: Result) -> str:
    return ", ".join(f"{row['ms_per_file']:.1f} ms a file ({row['format']})" for row in r["formats"])


def sinks(r: Result) -> str:
    return "; ".join(f"{name}: {per_s(rates['rows_per_s'])}" for name, rates in r["sinks"].items()) + " rows/s"


def real_clips(r: Result) -> str:
    rows, frames = sum(row["rows"] for row in r["rows"]), sum(row["frames"] for row in r["rows"])
    worst = max(row["worst_time_difference_us"] for row in r["rows"])
    return f"{rows:,} rows of {frames:,} frames, times within {worst} µs of the container's"


def reloop2_drift(r: Result) -> str:
    mean = r["streams"]["synthetic_drift"]["mean"]
    ways = [mean["memory (knn)"], mean["memory (sketch)"]]

    def recovered(phase: str) -> str:
        return _span((100 * way[phase]["recovered"] for way in ways), 0)

    return (
        f"of the excess logloss the memory recovers {recovered('phase1')} % after a drift of concepts and "
        f"{recovered('phase2')} % after a shift of the base rate; before, it changes logloss by "
        f"{_span((way['phase0']['cost'] for way in ways), 4)}"
    )


def movielens(r: Result) -> str:
    mean = r["streams"]["ml100k"]["mean"]

    def gain(way: str) -> float:
        return 100 * (mean[way]["auc"] - mean["frozen"]["auc"])

    return (
        f"AUC +{gain('memory (knn)'):.2f} points (nearest rows), +{gain('memory (sketch)'):.2f} (sketch) over the frozen model"
    )


def reloop2_soak(r: Result) -> str:
    memory, kills = r["memory"], r["kills"]
    same = "the same bits" if kills["rows_equal"] and kills["bank_difference"] is None else "NOT the same"
    return (
        f"{per_s(memory['impressions_per_s'])} a second, peak memory of the second half "
        f"{memory['growth_bytes'] / 1e6:.1f} MB over the first's; predictions and bank after {kills['kills']} kills {same}"
    )


def sketch(r: Result) -> str:
    def rate(width: str, side: str) -> float:
        return float(r["rows_per_s"][width][side]["hash, read and write"])

    both = [(width, rate(width, "streambank"), rate(width, "plain")) for width in r["rows_per_s"]]
    return "; ".join(f"{width} numbers: {per_s(ours)} rows/s, {ours / plain:.2f} times it" for width, ours, plain in both)


def faiss(r: Result) -> str:
    def against(kind: str) -> str:
        useful = r["useful_recall"]
        rows = [
            row for case in r["cases"] for row in case["comparison"] if f" {kind}" in row["faiss"] and row["recall"] >= useful
        ]
        return f"{_span(row['ratio'] for row in rows)} times {kind}"

    counted, behind = r["comparisons_at_useful_recall"], r["faiss_ahead_at_useful_recall"]
    return (
        f"{against('Flat')}, {against('IVF')}, {against('HNSW')}; ahead in {counted - behind} of {counted} comparisons "
        f"at a recall of {r['useful_recall']} or more"
    )


def rekv_gain(r: Result) -> str:
    right = r["accuracy"]
    return (
        f"{_percent(right['memory'])} right with memory, {_percent(right['uniform'])} from as many frames evenly spread, "
        f"{_percent(right['blind'])} without frames; "
        f"the event is among the retrieved frames in {100 * r['recall']['mean']:.1f} %"
    )


def rekv_speed(r: Result) -> str:
    same = "same tokens" if r["same_tokens"] else "OTHER tokens"
    return f"{r['ratio']['frame']:.1f} times per encoded frame, {r['ratio']['answer']:.1f} times per answer, {same}"


def rekv_day(r: Result) -> str:
    first, last, exact = r["bytes_first"], r["bytes_last"], r["checks"]["first_minute_answer_exact"]
    flat = "flat" if first["device"] == last["device"] and first["host"] == last["host"] else "NOT flat"
    return (
        f"device and host {flat}, {last['disk'] / 1e6:.0f} MB on disk, {r['computed']['disk'] / 1e6:.0f} MB computed; "
        f"the first minute {'still answered with the same bits' if exact else 'NOT answered with the same bits'}"
    )


def policies(r: Result) -> str:
    plain = r["policies"]["off"]
    others = [policy for name, policy in r["policies"].items() if name != "off"]
    bytes_ = _span((100 * policy["share"] for policy in others), 0)
    right = _span((100 * policy["accuracy"] for policy in others), 1)
    return f"{bytes_} % of the bytes at {right} % right ({100 * plain['accuracy']:.1f} % without a policy)"


def _videostreaming_sets(r: Result) -> list[Result]:
    return [one for model in r["models"].values() for one in model["sets"]]


def videostreaming_gain(r: Result) -> str:
    sets = _videostreaming_sets(r)

    def right(way: str) -> str:
        return _percent(_mean(one["accuracy"][way] for one in sets))

    most = max(one["accuracy"]["uniform"] for one in sets)
    recall = _mean(one["recall"]["memory"] for one in sets)
    rekv = _mean(one["accuracy"]["memory"] for one in r["rekv"])
    return (
        f"{right('memory')} right from the selected memories, at most {_percent(most)} from as many tokens evenly spread, "
        f"{right('last')} from the newest, {right('blind')} without; the right clip is selected in {_percent(recall)}; "
        f"ReKV with as many tokens {_percent(rekv)}"
    )


def propagation(r: Result) -> str:
    told = {name: f"{_percent(r['before'][name][0])} ± {100 * r['before'][name][1]:.0f}" for name in ("with", "without")}
    gain, half_width = (round(100 * value) for value in r["before"]["gain"])
    return f"{told['with']} right with it, {told['without']} without; film by film {gain} ± {half_width} points more"


def videostreaming_speed(r: Result) -> str:
    first, last = r["rows"][0], r["rows"][-1]
    costs = (
        f"{1e3 * first['clip_s']:.1f} and {1e3 * last['clip_s']:.1f} ms a clip, {1e3 * first['answer_s']:.1f} and "
        f"{1e3 * last['answer_s']:.1f} ms an answer"
    )
    shortest = min(row["hours"] for row in r["compared"])
    compared = [row for row in r["compared"] if row["hours"] == shortest]

    def times(way: str) -> str:
        return ", ".join(f"{row['ratio'][way]:.1f}" for row in compared)

    return (
        f"{costs}; encoding the whole video again per question takes {times('without')} times as long at "
        f"{', '.join(str(row['questions']) for row in compared)} questions about {60 * shortest:.0f} minutes, "
        f"{times('without_in_batches')} times with many clips at once"
    )


def fourd_coverage(r: Result) -> str:
    def worst(case: str) -> str:
        return " against ".join(f"{r['table'][case][way]['worst_coverage']:.3f}" for way in ("window", "uniform"))

    return f"worst {worst('still_with_events')} of even spacing; {worst('redkitchen30')}, a tie"


def fourd_task(name: str) -> Callable[[Result], str]:
    def figure(r: Result) -> str:
        ways = r["tasks"][name]["outcomes"]
        return (
            f"{_span(ways['window'])} right with memory bank sampling, {_span(ways['uniform'])} from as many frames "
            f"evenly spaced, {_span(ways['last_k'])} from the newest"
        )

    return figure


def fourd_point(r: Result) -> str:
    ways = r["tasks"]["point"]["outcomes"]
    return f"{100 * _mean(ways['with coordinates']):.0f} cm off with coordinates, {100 * _mean(ways['without']):.0f} cm without"


def fourd_memory(r: Result) -> str:
    first, last = r["seen"][0], r["seen"][-1]
    same = all(first[name] == last[name] for name in ("bank_bytes", "snapshot_bytes"))
    grown = (last["resident_bytes"] - first["resident_bytes"]) / 1024
    return f"bank and snapshot {'the same bytes' if same else 'GREW'}, resident memory grows by {grown:.0f} KiB"


def fourd_speed(r: Result) -> str:
    same = "the same frames chosen" if r["same_choice"] == 1 else f"the same frames in {_percent(r['same_choice'])}"
    return f"{r['times_plain']:.1f} ({r['times_k_again']:.1f}) times, {same}"


def confidence(r: Result) -> str:
    return f"{_percent(r['caught'])} and {_percent(r['lost'])} at {r['default']}"


def standing(method: str) -> Callable[[Result], str]:
    def figure(r: Result) -> str:
        own = r["methods"][method]
        one, several = own["single"], own["mixed"]
        return (
            f"recall {one['recall']:.3f} and {several['recall']:.3f}, {one['false_alarms_per_film_hour']:.1f} and "
            f"{several['false_alarms_per_film_hour']:.1f} false alarms per film hour over all of them; a thousand cost "
            f"{own['cost']['ratio']:.2f} times one, {own['cost']['ratio_watching']:.2f} times while nothing rises"
        )

    return figure


def tss_speed(r: Result) -> str:
    return f"{per_s(r['window_apart'])} and {per_s(r['quarter'])} samples/s of final states"


def tss_again(r: Result) -> str:
    return f"{r['released_ms'] / r['again_ms']:.1f} times faster, logits within {r['difference']:.0e}"


def tss_waves(r: Result) -> str:
    nets = r["remote_accuracy"].values()
    before, label, denied = (
        _span(net[f"remote_{what}"] for net in nets) for what in ("0_prompts", "1_prompts", "1_not_prompts")
    )
    return f"{before} without, {label} with; {denied} with one that says what it is not"


def tss_people(r: Result) -> str:
    seeds = r["usc_had"].values()
    half, quarter = (_span((seed[stride]["without"] for seed in seeds), 3) for stride in ("T/2", "T/4"))
    gains = [[seed[stride]["12_label"] for seed in seeds] for stride in ("T/2", "T/4")]
    told = " and ".join(", ".join(f"{gain['all'][0]:+.3f} ± {gain['all'][1]:.3f}" for gain in each) for each in gains)
    segments = _span((gain["over_segments"] for each in gains for gain in each), 3)
    return (
        f"{half} without prompts (windows a quarter of one apart: {quarter}); twelve labels add {told} over places of prompts "
        f"(± {segments} over segments of the files)"
    )


def tss_peers(group: str) -> Callable[[Result], str]:
    def figure(r: Result) -> str:
        told = {method: found["covering"] for method, found in r["table"][group].items()}
        ours = [f"{told.pop(method):.3f}" for method in ("ours", "ours, told")]
        return (
            ", ".join(f"{method} {score:.3f}" for method, score in told.items()) + f"; memprompttss {' and, told, '.join(ours)}"
        )

    return figure


def tss_peers_speed(r: Result) -> str:
    def spans(method: str) -> str:
        return _span((one[method]["samples_per_s"] for one in r["table"].values() if method in one), 0)

    run = [(name, method) for name, method in _TSS_METHODS.items() if any(method in one for one in r["table"].values())]
    return ", ".join(f"{name} {spans(method)}" for name, method in run) + " samples/s"


def drift_current(r: Result) -> str:
    difference, more = r["paired"]["current: prompt less online"]
    return (
        f"{_drift_both(r, 'current')} nats an event from the truth; prompts less online, paired {difference:+.3f} ± {more:.3f}"
    )


def drift_forgotten(r: Result) -> str:
    difference, more = r["paired"]["forgotten: half of online's less prompt's"]
    return (
        f"{_drift_both(r, 'forgotten')} nats an event forgotten while a regime was away, {_drift_both(r, 'lost_on_return')} "
        f"lost when it returns; half of what online forgets less what prompts do, paired {difference:+.3f} ± {more:.3f}"
    )


def _drift_both(r: Result, what: str) -> str:
    ways = r["nats_per_event_from_the_truth"]
    both = " and ".join(f"{ways[way][what][0]:.2f} ± {ways[way][what][1]:.2f}" for way in ("prompt", "online"))
    return (
        both
        if what == "lost_on_return"
        else f"{len(r['each_seed']['prompt'][what])} seeds, prompts and online training: {both}"
    )


def tpp_tables(name: str) -> Callable[[Result], str]:
    def figure(r: Result) -> str:
        found = r["sets"][name]
        floors, schemes = found["floors"], found["schemes"]

        def row(what: str, digits: int) -> str:
            return ", ".join(f"{scheme} {scores[what]:.{digits}f}" for scheme, scores in schemes.items())

        return (
            f"nats an event (days): {row('nats', 3)}, floor {floors['nats_constant_rate_markov']:.3f}; type error: "
            f"{row('type_error', 3)}, floors {floors['error_most_frequent']:.3f} and {floors['error_markov']:.3f} "
            f"(most frequent, Markov); RMSE in days: {row('rmse', 2)}, floor {floors['rmse_mean_gap']:.2f}"
        )

    return figure


def tpp_speed(r: Result) -> str:
    rates = r["events_per_second"]

    def rate(name: str) -> float:
        return float(rates[name]["by_processor_time"])

    ours = {name: rate(f"{name}: scored and predicted") for name in ("s2p2", "nhp", "attnhp")}
    published = rate("published procedure, length 100, 500 proposals: positions")
    shown = ", ".join(f"{name} {per_s(events)}" for name, events in ours.items())
    keys = " and ".join(per_s(rate(name)) for name in rates if name.endswith(("events of 1000 keys", "events of 1000000 keys")))
    return (
        f"{shown} events/s of processor time (s2p2, 20,000 slots, 1,000 and 1,000,000 keys: {keys}); the default "
        f"{ours['s2p2'] / published:.0f} times the published procedure"
    )


def sound_codec(r: Result) -> str:
    sets = [one for model in r["models"].values() for one in model["sets"]]
    rate, bits = (_mean(one[name] for one in sets) for name in ("codec_bits_per_s", "codec_error"))
    return f"{rate:.0f} bit/s at an error of {bits:.3f}, {_mean(one['mean_error'] for one in sets):.3f} of the mean predictor"


def sound_gain(r: Result) -> str:
    sets = [one for model in r["models"].values() for one in model["sets"]]

    def shares(what: str) -> str:
        return " and ".join(_percent(_mean(one[f"{what}_{way}"] for one in sets)) for way in ("frames", "none"))

    return f"onsets within 0.1 s {shares('onsets')} with and without frames, pitch classes {shares('pitches')}"


def sound_speed(r: Result) -> str:
    return ", ".join(f"{row['faster']:.0f} times per stream at {row['streams']}" for row in r["rows"])


def sound_hour(r: Result) -> str:
    return (
        f"{r['pace']:.1f} times its own pace (processor time); memory grows by {r['grown_bytes'] / 2**20:.1f} MiB; "
        f"{100 * r['share_of_jumps']:.1f} % of the borders between rows jump more than 1 % of all frame borders do"
    )


_TSS_METHODS = {"ClaSP": "ClaSP", "ClaSS": "ClaSS", "CLaP": "CLaP", "memprompttss": "ours"}
