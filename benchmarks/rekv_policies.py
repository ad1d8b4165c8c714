"""Bank policies on the small model's task: bytes, accuracy and time of each, policy off in the first row.

Films of ten minutes, unseen, through the session of a running stream into a BlockBank; answers from 16 retrieved frames. What a
policy judges tokens by is known when a block is written: queries and keys of its own frame (before rotation), not the question.
The small model has 4 tokens per frame. Merged tokens get no weight for their number (log_size is stored and not read).
SirLLM's entropies are patch surprise in its stead, with a turn every minute; a bank does not drop blocks from its middle, so
its bytes are those of the frames that the rule keeps. EM-LLM changes what is read, not what is stored.

    python -m benchmarks.rekv_policies [--films 10] [--weights FILE]
"""

# F frames, T tokens per frame, H query heads, G key/value heads, R heads per group, D head dim, N frames of the bank

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from models.rekv.config import ReKVConfig
from models.rekv.encoding import encode_frames
from models.rekv.films import make_film, questions
from models.rekv.generate import Question, answer_questions
from models.rekv.loaders import VideoLanguageModel, load_model
from models.rekv.session import StreamView, open_stream
from models.rekv.small import SMALL_WEIGHTS, load_small
from operators.banks.block_bank import BlockBank
from operators.banks.block_policies import (
    BlockFloatCodec,
    KeptTokensCodec,
    KVMergerCodec,
    ThinKCodec,
    decay_entropy,
    event_starts,
    frame_surprise,
    keep_tokens,
    select_events,
    unimportant_counts,
)
from operators.banks.blocks.reader import BlockReader
from operators.banks.blocks.spec import BlockCodec, BlockSpec, PlainCodec, page_bytes

FRAMES, FIRST_FILM, AT_ONCE, MAX_NEW_TOKENS = 600, 4000, 100, 8
SINKS, SURPRISING, RECENT, TURN, DECAY = 4, 280, 16, 60, 0.7  # frames; half of a film stays (decay: paper's dialogues)
EVENT_WINDOW, SHORTEST, LONGEST = 64, 4, 16  # frames; the paper's 8..128 are tokens

Stats = Callable[[Tensor, Tensor], dict[str, Tensor]]
Select = Callable[[BlockReader, ReKVConfig], Callable[[int, Tensor], Tensor]]


@dataclass(frozen=True, slots=True)
class Policy:
    """How blocks are stored, from what, and which are read."""

    codec: BlockCodec
    stats: Stats | None = None
    """Queries [F, H, T, D] and keys [F, G, T, D] of a layer → the codec's stats."""
    tokens: int | None = None
    """Tokens of a block that is read; None: those of a frame."""
    select: Select | None = None
    share: float = 1.0
    """Of the frames that stay."""


@dataclass(slots=True)
class PolicyWriter:
    """Slot 0 of a bank whose codec needs the queries."""

    bank: BlockBank
    stats: Stats | None
    queries: dict[int, Tensor] = field(default_factory=dict)

    def observe(self, layer: int, queries_FHTD: Tensor) -> None:
        if self.stats is not None:
            self.queries[layer] = queries_FHTD

    def append(self, layer: int, keys_FGTD: Tensor, values_FGTD: Tensor, representatives_FGD: Tensor) -> None:
        stats = {} if self.stats is None else self.stats(self.queries.pop(layer), keys_FGTD)
        batched = {name: value[None] for name, value in stats.items()}
        self.bank.append_layer(layer, [0], keys_FGTD[None], values_FGTD[None], representatives_FGD[None], batched)


def frame_attention(queries_FHTD: Tensor, keys_FGTD: Tensor) -> Tensor:
    """Return what each query of a frame gives each of its tokens, [F, G, queries, T], mean over heads that share keys."""
    frames, _, tokens, dim = queries_FHTD.shape
    queries_FGRTD = queries_FHTD.reshape(frames, keys_FGTD.shape[1], -1, tokens, dim)
    logits = queries_FGRTD.float() @ keys_FGTD.float()[:, :, None].transpose(3, 4) * dim**-0.5
    attention_FGQT: Tensor = logits.softmax(dim=-1).mean(dim=2)
    return attention_FGQT


def scissorhands_stats(queries_FHTD: Tensor, keys_FGTD: Tensor) -> dict[str, Tensor]:
    """Score tokens by how seldom a query of the frame found them unimportant."""
    attention_WFGT = frame_attention(queries_FHTD, keys_FGTD).permute(2, 0, 1, 3)
    steps, frames, groups, tokens = attention_WFGT.shape
    counts = unimportant_counts(attention_WFGT.reshape(steps, frames * groups, tokens), torch.full((steps,), tokens))
    return {"score": -counts.view(frames, groups, tokens).float()}


def merger_stats(queries_FHTD: Tensor, keys_FGTD: Tensor) -> dict[str, Tensor]:
    """Attention received, summed over the frame's queries."""
    return {"attention": frame_attention(queries_FHTD, keys_FGTD).sum(dim=2)}


def think_stats(queries_FHTD: Tensor, keys_FGTD: Tensor) -> dict[str, Tensor]:
    """Mean squares of the frame's queries per channel, over the heads that share keys."""
    frames, dim = len(queries_FHTD), queries_FHTD.shape[-1]
    return {"query_squares": queries_FHTD.float().square().reshape(frames, keys_FGTD.shape[1], -1, dim).mean(dim=2)}


def sirllm_select(blocks: BlockReader, config: ReKVConfig) -> Callable[[int, Tensor], Tensor]:
    """Retrieve among the first, the surprising (which fade turn by turn) and the last frames."""

    def select(layer: int, scores_N: Tensor) -> Tensor:
        surprise_N = frame_surprise(blocks.representatives(layer).flatten(1))
        for turn in range(TURN, len(surprise_N), TURN):
            surprise_N = torch.cat((decay_entropy(surprise_N[:turn], DECAY), surprise_N[turn:]))
        kept_K = keep_tokens(surprise_N, SINKS, SURPRISING, RECENT)
        best = scores_N[kept_K].sort(descending=True, stable=True).indices[: config.retrieve_frames]
        return blocks.first + kept_K[best].sort().values

    return select


def em_llm_select(blocks: BlockReader, config: ReKVConfig) -> Callable[[int, Tensor], Tensor]:
    """Retrieve whole events instead of frames."""

    def select(layer: int, scores_N: Tensor) -> Tensor:
        surprise_N = frame_surprise(blocks.representatives(layer).flatten(1))
        starts_E = event_starts(surprise_N, window=EVENT_WINDOW, shortest=SHORTEST, longest=LONGEST)
        return blocks.first + select_events(scores_N, starts_E, config.retrieve_frames)

    return select


def policies(tokens: int, dim: int) -> dict[str, Policy]:
    """Return the rows of the table for blocks of ``tokens`` tokens and heads of ``dim``."""
    half = max(1, tokens // 2)
    kept = min(1.0, (SINKS + SURPRISING + RECENT) / FRAMES)
    return {
        "off": Policy(PlainCodec()),
        "Scissorhands, half": Policy(KeptTokensCodec(half), scissorhands_stats, half),
        "KVMerger, half": Policy(KVMergerCodec(half), merger_stats, half),
        "ThinK 0.4": Policy(ThinKCodec(0.4), think_stats),
        "block float, K-sort": Policy(BlockFloatCodec(dim // 2 if dim % 4 == 0 else dim)),
        "SirLLM, half": Policy(PlainCodec(), select=sirllm_select, share=kept),
        "EM-LLM events": Policy(PlainCodec(), select=em_llm_select),
    }


def measure(
    model: VideoLanguageModel, config: ReKVConfig, policy: Policy, film_seeds: range, length: int = FRAMES
) -> dict[str, Any]:
    """Watch films and answer every question; return bytes per frame, accuracy, recall and processor time."""
    if model.frames is None:
        raise ValueError("a model without frame encoder cannot watch films")
    decoder, right, recalls, encode_s, answer_s, block = model.decoder, [], [], 0.0, 0.0, 0
    for seed in film_seeds:
        film = make_film(seed, length=length)
        asked = questions(film, np.random.default_rng([seed, 3]))
        parts = [film.frames(start, min(start + AT_ONCE, length)) for start in range(0, length, AT_ONCE)]
        features_FTC = torch.cat([model.frames(torch.from_numpy(part)) for part in parts])
        tokens, prefix = features_FTC.shape[1], model.prefix()
        spec = BlockSpec(layers=decoder.layers, groups=decoder.groups, tokens=tokens, dim=decoder.dim)
        block = spec.layers * (page_bytes(policy.codec.fields(spec)) + spec.representative.bytes)
        bank = BlockBank(spec, slots=1, device_bytes=length * block, codec=policy.codec)
        with contextlib.closing(bank):
            bank.open([0], [0])
            writer = PolicyWriter(bank, policy.stats)
            stream = open_stream(decoder, config, prefix, decoder.grid(tokens), writer)
            stream.observe = writer.observe
            began = time.thread_time()
            encode_frames(decoder, config, [stream], [features_FTC])
            encode_s += time.thread_time() - began
            with bank.reader(0) as blocks:
                select = policy.select(blocks, config) if policy.select is not None else None
                view = StreamView(prefix, decoder.grid(policy.tokens or tokens), blocks, select)
                batch = [
                    Question(
                        stream=view,
                        question_ids_n=model.ids(one.text),
                        prompt_ids_n=model.ids(model.prompts.open_ended(one.text)),
                        max_new_tokens=MAX_NEW_TOKENS,
                    )
                    for one in asked
                ]
                began = time.thread_time()
                answers = answer_questions(decoder, config, batch, model.end_tokens)
                answer_s += time.thread_time() - began
        for one, answer in zip(asked, answers, strict=True):
            right.append((model.tokenizer.decode(answer.tokens) if model.tokenizer else "") == one.answer)
            wanted = set(one.event.frames)
            most = min(len(wanted), config.retrieve_frames)
            recalls += [len(wanted & set(frames.tolist())) / most for frames in answer.retrieved]
    return {
        "bytes_per_frame": round(block * policy.share),
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
    config = load_small(arguments.weights).rekv
    model = load_model(arguments.weights, config)
    rows: dict[str, Any] = {}
    print(f"{'policy':22} {'bytes/frame':>11} {'share':>6} {'accuracy':>8} {'recall':>7} {'encode ms':>9} {'answer ms':>9}")
    for name, policy in policies(4, model.decoder.dim).items():
        row = rows[name] = measure(model, config, policy, range(FIRST_FILM, FIRST_FILM + arguments.films))
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
