"""The benchmark of VideoStreaming's cost runs, and finds the same memory on the device for videos of any length."""

import torch

from benchmarks.videostreaming_speed import SIDE, Answering, build_small, compare, film_tokenizer, measure


def test_device_memory_and_selected_tokens_do_not_depend_on_the_length(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("benchmarks.videostreaming_speed.REPEATS", 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        answering = Answering(build_small(film_tokenizer(), SIDE), 64, 4)
    rows = [measure(answering, clips * 8 / 3600, 80, tmp_path / str(clips)) for clips in (5, 60)]
    assert [row["clips"] for row in rows] == [5, 60]
    assert rows[0]["bytes"]["device"] == rows[1]["bytes"]["device"] and rows[1]["bytes"]["disk"] >= rows[0]["bytes"]["disk"]
    assert all(row["clip_s"] > 0 and row["answer_s"] > 0 for row in rows)


def test_both_ways_are_run_to_their_last_answers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        answering = Answering(build_small(film_tokenizer(), SIDE), 64, 4)
    row = compare(answering, 10 * 8 / 3600, 5, tmp_path)
    assert set(row["processor_s"]) == {"with_memory", "without", "without_in_batches"}
    assert row["ratio"]["without"] > 1.5  # five times ten clips and five answers against ten clips and five answers
