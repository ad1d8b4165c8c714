"""Bank policies of ``rekv`` on the small model's task: bytes, accuracy and time of each, no policy in the first row.

Films of ten minutes, unseen, through the operator's own encoder, bank and answering (its option ``policy``); answers from 16
retrieved frames. The small model has 4 tokens per frame. EM-LLM changes what is read, not what is stored.

    python -m benchmarks.rekv_policies [--films 10] [--weights FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from models.films import make_film, questions
from models.rekv.header import SMALL_WEIGHTS
from operators.block_rows import BlockRows
from operators.rekv import ReKVOptions
from operators.rekv.answering import BlockQuestion
from operators.rekv.encoder import FrameEncoding
from operators.rekv.policies import EMLLM, BlockFloat, KVMerger, Policy, Scissorhands, ThinK
from operators.rekv.streams import VideoNumbers
from operators.rekv.weights import load_answering

FRAMES, FIRST_FILM, AT_ONCE, MAX_NEW_TOKENS = 600, 4000, 100, 8
CPU = torch.device("cpu")

POLICIES: dict[str, Policy | None] = {
    "off": None,
    "Scissorhands, half": Scissorhands(keep=0.5),
    "KVMerger, half": KVMerger(keep=0.5),
    "ThinK 0.4": ThinK(ratio=0.4),
    "block float, K-sort": BlockFloat(),
    "EM-LLM events": EMLLM(),
}


def measure(policy: Policy | None, film_seeds: range, length: int = FRAMES, weights: Path = SMALL_WEIGHTS) -> dict[str, Any]:
    """Watch films and answer every question; return bytes per frame, accuracy, recall and processor time."""
    options = ReKVOptions(
        checkpoint=str(weights), policy=policy, max_streams=1, frames_per_stream=length, device_gib=length / 10_000
    )
    answering = load_answering(options, "policies", CPU)
    encoding = FrameEncoding("policies", answering, options, CPU)
    right, recalls, encode_s, answer_s = [], [], 0.0, 0.0
    with contextlib.closing(encoding.bank):
        for seed in film_seeds:
            film = make_film(seed, length=length)
            asked = questions(film, np.random.default_rng([seed, 3]))
            encoding.open(0, seed)
            stream = encoding.make(0, VideoNumbers(BlockRows(length, width=0)))
            for start in range(0, length, AT_ONCE):
                features = encoding.features(list(film.frames(start, min(start + AT_ONCE, length))))
                began = time.thread_time()
                encoding.append([stream], [[tokens_TC for tokens_TC in features if tokens_TC is not None]])
                encode_s += time.thread_time() - began
            with encoding.reader(0, length) as blocks:
                began = time.thread_time()
                answers = answering([BlockQuestion(one.text, MAX_NEW_TOKENS) for one in asked], [blocks] * len(asked))
                answer_s += time.thread_time() - began
            encoding.bank.release([0])
            for one, answer in zip(asked, answers, strict=True):
                right.append(answer.text == one.answer)
                wanted = set(one.event.frames)
                most = min(len(wanted), answering.config.retrieve_frames)
                recalls += [len(wanted & set(frames_K.tolist())) / most for frames_K, _ in answer.retrieved]
    return {
        "bytes_per_frame": encoding.bank.block_bytes,
        "accuracy": float(np.mean(right)),
        "recall": float(np.mean(recalls)),
        "questions": len(right),
        "encode_ms_per_frame": 1e3 * encode_s / (len(film_seeds) * length),
        "answer_ms": 1e3 * answer_s / len(right),
    }


def main() -> int:
    """Measure every policy on the same films, print the table, write ``results/rekv_policies.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=10)
    parser.add_argument("--weights", type=Path, default=SMALL_WEIGHTS, help="a small model; default: the one in the package")
    arguments = parser.parse_args()
    if arguments.films < 1:
        parser.error(f"--films is {arguments.films}; it must be at least 1")
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    print(f"{'policy':22} {'bytes/frame':>11} {'share':>6} {'accuracy':>8} {'recall':>7} {'encode ms':>9} {'answer ms':>9}")
    for name, policy in POLICIES.items():
        films = range(FIRST_FILM, FIRST_FILM + arguments.films)
        row = rows[name] = measure(policy, films, weights=arguments.weights)
        row["share"] = row["bytes_per_frame"] / rows["off"]["bytes_per_frame"]
        print(
            f"{name:22} {row['bytes_per_frame']:11d} {row['share']:6.2f} {row['accuracy']:8.3f} {row['recall']:7.3f} "
            f"{row['encode_ms_per_frame']:9.3f} {row['answer_ms']:9.1f}",
            flush=True,
        )
    print("written:", machine.write("rekv_policies", {"films": arguments.films, "policies": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
