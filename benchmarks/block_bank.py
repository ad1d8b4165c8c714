"""BlockBank: GB/s per tier against blocks in Python lists, codecs, a day of video: ``python -m benchmarks.block_bank``.

Blocks have the shape of LLaVA-OneVision 0.5B (2 groups, 196 tokens, 64 numbers, half precision), with fewer layers. A question
gathers 64 random blocks of every layer. Every tier must return the same bytes, which is checked. The published way keeps an
object per block and layer and copies keys and values one after the other; both sides compute representatives. One thread, its
processor time. Files lie in a temporary folder and are warm in the page cache, as they are after writing. The day has 43,200
small blocks: memory must stay flat, and the first minute be exact.
"""

# F blocks written at once, L layers, G groups, T tokens, D dim, R blocks of a question

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from operators.banks import BlockBank, BlockCodec, BlockSpec, PlainCodec, ReadBuffer
from operators.banks.block_policies import BlockFloatCodec, KeptTokensCodec, KVMergerCodec, ThinKCodec
from operators.state import State

SPEC = BlockSpec(layers=8, groups=2, tokens=196, dim=64, dtype=torch.float16)
BLOCKS, AT_ONCE, CHOSEN, QUESTIONS = 400, 8, 64, 5
MEANS = SPEC.layers * SPEC.representative.bytes
BLOCK = SPEC.layers * 4 * SPEC.groups * SPEC.tokens * SPEC.dim
ROOM = BLOCKS + 64

DAY = BlockSpec(layers=2, groups=1, tokens=4, dim=32, dtype=torch.float16)
DAY_BLOCKS = 43_200


class Published:
    """An object per block and layer; a gather copies block by block, keys and values apart."""

    def __init__(self) -> None:
        self.blocks: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(SPEC.layers)]
        self.means: list[list[Tensor]] = [[] for _ in range(SPEC.layers)]

    def append(self, layer: int, keys_FGTD: Tensor, values_FGTD: Tensor) -> None:
        self.means[layer] += [keys_GTD.float().mean(1) for keys_GTD in keys_FGTD]
        self.blocks[layer] += [(k.clone(), v.clone()) for k, v in zip(keys_FGTD, values_FGTD, strict=True)]

    def gather(self, layer: int, chosen_R: Tensor) -> tuple[Tensor, Tensor]:
        shape = (len(chosen_R), SPEC.groups, SPEC.tokens, SPEC.dim)
        keys, values = torch.empty(shape, dtype=SPEC.dtype), torch.empty(shape, dtype=SPEC.dtype)
        for place, number in enumerate(chosen_R.tolist()):
            keys[place].copy_(self.blocks[layer][number][0])
            values[place].copy_(self.blocks[layer][number][1])
        return keys, values


def tiers(folder: Path) -> dict[str, dict[str, Any]]:
    """Budgets by name: what holds all blocks, and what caches them."""
    disk = {"disk_bytes": 2 * ROOM * (BLOCK + MEANS) + (1 << 20), "disk_folder": folder / "only"}
    near = 2 * ROOM * MEANS + (1 << 20)
    return {
        "device": {"device_bytes": ROOM * (BLOCK + MEANS)},
        "host": {"device_bytes": ROOM * MEANS, "host_bytes": ROOM * BLOCK},
        "host, device cache": {"device_bytes": ROOM * MEANS + 128 * BLOCK, "host_bytes": ROOM * BLOCK},
        "disk": {"device_bytes": near, **disk},
        "disk, host cache": {"device_bytes": near, "host_bytes": 200 * BLOCK, **disk, "disk_folder": folder / "cached"},
    }


def frames(number: int) -> tuple[Tensor, Tensor]:
    """Keys and values [F, L, G, T, D] of the blocks from ``number`` on."""
    generator = torch.Generator().manual_seed(number)
    shape = (2, AT_ONCE, SPEC.layers, SPEC.groups, SPEC.tokens, SPEC.dim)
    keys, values = torch.randn(shape, generator=generator).to(SPEC.dtype)
    return keys, values


def timed(call: Callable[[], object]) -> float:
    """Seconds of processor time of this thread, the system's included; of a clock where a GPU is at work."""
    clock = time.perf_counter if torch.cuda.is_available() else time.thread_time
    start = clock()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def questions() -> list[list[Tensor]]:
    """Per question and layer the blocks it reads; a question shares most of them with the one before."""
    generator = torch.Generator().manual_seed(1)
    hot = torch.randperm(BLOCKS, generator=generator)[: CHOSEN + 32]
    return [
        [hot[torch.randperm(len(hot), generator=generator)[:CHOSEN]].sort().values for _ in range(SPEC.layers)]
        for _ in range(QUESTIONS)
    ]


def measure(name: str, kwargs: Mapping[str, Any], device: str, expected: Published | None) -> dict[str, Any]:
    """Return rates of one arrangement of tiers, and whether it returned the bytes of ``expected``."""
    bank = BlockBank(SPEC, slots=1, device=device, **kwargs)
    for _ in range(2):  # the second time, memory is not fresh from the system anymore
        bank.release([0])
        bank.open([0], [1])
        wrote = 0.0
        for number in range(0, BLOCKS, AT_ONCE):
            keys, values = (x.to(device) for x in frames(number))

            def write(keys: Tensor = keys, values: Tensor = values) -> None:
                for layer in range(SPEC.layers):
                    bank.append_layer(layer, [0], keys[None, :, layer], values[None, :, layer])

            wrote += timed(write)
    buffer, cold, warm, same = ReadBuffer(), 0.0, [], True
    with bank.reader(0) as reader:
        for turn, question in enumerate(questions()):
            spent = timed(lambda q=question: [reader.gather(layer, chosen, buffer) for layer, chosen in enumerate(q)])
            cold = spent if turn == 0 else cold
            warm += [spent] if turn else []
        for layer, chosen in enumerate(questions()[0]):
            if expected is not None:
                pairs = zip(reader.gather(layer, chosen), expected.gather(layer, chosen), strict=True)
                same &= all(torch.equal(got.cpu(), wanted) for got, wanted in pairs)
    bank.close()
    size = CHOSEN * BLOCK / 1e9
    return {
        "tier": name,
        "append_gb_per_s": round(BLOCKS * BLOCK / wrote / 1e9, 2),
        "gather_first_gb_per_s": round(size / cold, 2),
        "gather_gb_per_s": round(size / statistics.median(warm), 2),
        "question_ms": round(1e3 * statistics.median(warm), 2),
        "bytes": bank.bytes(),
        "same": same,
    }


def published() -> tuple[dict[str, Any], Published]:
    """Return the rates of blocks in lists, and the blocks."""
    for _ in range(2):
        store, wrote = Published(), 0.0
        for number in range(0, BLOCKS, AT_ONCE):
            keys, values = frames(number)
            wrote += timed(lambda k=keys, v=values, to=store: [to.append(i, k[:, i], v[:, i]) for i in range(SPEC.layers)])
    spent = [timed(lambda q=q: [store.gather(i, chosen) for i, chosen in enumerate(q)]) for q in questions()]
    size = CHOSEN * BLOCK / 1e9
    row = {
        "tier": "published, in memory",
        "append_gb_per_s": round(BLOCKS * BLOCK / wrote / 1e9, 2),
        "gather_first_gb_per_s": round(size / spent[0], 2),
        "gather_gb_per_s": round(size / statistics.median(spent[1:]), 2),
        "question_ms": round(1e3 * statistics.median(spent[1:]), 2),
        "same": True,
    }
    return row, store


def codecs() -> list[dict[str, Any]]:
    """Bytes of a block and time per block. What a codec costs in accuracy depends on the model and is measured there."""
    stats = {
        "attention": torch.rand(CHOSEN, 2, 196),
        "score": torch.rand(CHOSEN, 2, 196),
        "query_squares": torch.ones(CHOSEN, 2, 64),
    }
    kinds: dict[str, BlockCodec] = {
        "as it is": PlainCodec(torch.float16),
        "KVMerger, half": KVMergerCodec(98, heavy=8, dtype=torch.float16),
        "kept tokens, half (Scissorhands, SirLLM)": KeptTokensCodec(98, torch.float16),
        "ThinK 0.4": ThinKCodec(0.4, torch.float16),
        "block float 32, K-sort": BlockFloatCodec(32, torch.float16),
    }
    keys, values = torch.randn(2, CHOSEN, 2, 196, 64, generator=torch.Generator().manual_seed(0)).half()
    rows = []
    for name, codec in kinds.items():
        fields = codec.encode(keys, values, stats)
        encode_s = statistics.median(timed(lambda c=codec: c.encode(keys, values, stats)) for _ in range(5))
        decode_s = statistics.median(timed(lambda c=codec, f=fields: c.decode(f)) for _ in range(5))
        size = SPEC.layers * sum(x[0].numel() * x.element_size() for x in fields.values())
        rows.append(
            {
                "codec": name,
                "bytes_per_block": size,
                "share": round(size / BLOCK, 3),
                "encode_ms_per_page": round(1e3 * encode_s / CHOSEN, 3),
                "decode_ms_per_page": round(1e3 * decode_s / CHOSEN, 3),
            }
        )
    return rows


def day(folder: Path) -> dict[str, Any]:
    """Write a day of blocks with a snapshot every hour; return memory after the first hour and at the end, and state sizes."""
    block = DAY.layers * 4 * DAY.groups * DAY.tokens * DAY.dim
    means = DAY.layers * DAY.representative.bytes
    bank = BlockBank(
        DAY,
        slots=1,
        device_bytes=2 * DAY_BLOCKS * means,
        host_bytes=1000 * block,
        disk_bytes=int(1.2 * DAY_BLOCKS * (block + means)),
        disk_folder=folder / "day",
    )
    bank.open([0], [1])
    shape = (2, 1, 60, DAY.layers, DAY.groups, DAY.tokens, DAY.dim)
    minute_keys, minute_values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DAY.dtype)
    peaks, tier_bytes, state_bytes = [], [], 0
    start = time.perf_counter()
    for number in range(0, DAY_BLOCKS, 60):
        for layer in range(DAY.layers):
            shifted = (number % 7) / 7
            bank.append_layer(layer, [0], minute_keys[:, :, layer] + shifted, minute_values[:, :, layer])
        if number % 1800 == 1740:
            state = State(streams=["day"])
            bank.export([0], state, incremental=False)
            bank.mark_clean()
            state_bytes = state.bytes()
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            tier_bytes.append(bank.bytes())
    seconds = time.perf_counter() - start
    with bank.reader(0) as reader:
        numbers = torch.arange(60)
        exact = all(
            torch.equal(reader.gather(layer, numbers)[0], minute_keys[0, :, layer])
            and torch.equal(reader.gather(layer, numbers)[1], minute_values[0, :, layer])
            for layer in range(DAY.layers)
        )
    bank.close()
    allocated = [sizes["device"] + sizes["host"] for sizes in tier_bytes]
    return {
        "blocks": DAY_BLOCKS,
        "seconds": round(seconds, 1),
        "device_and_host_bytes": [allocated[0], allocated[-1]],
        "disk_bytes": tier_bytes[-1]["disk"],
        "disk_bytes_of_blocks": DAY_BLOCKS * (block + means),
        "state_bytes": state_bytes,
        "peak_resident_bytes": [peaks[0], peaks[-1]],
        "flat": allocated[0] == allocated[-1],
        "first_minute_exact": exact,
    }


def main() -> int:
    """Measure and write ``results/block_bank.json``; 1 if a tier returned other bytes or the day was not flat and exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        simulated = day(Path(temporary))
        plain, store = published()
        rows = [plain]
        rows += [measure(name, kwargs, options.device, store) for name, kwargs in tiers(Path(temporary)).items()]
        del store
    for row in rows:
        print(
            f"{row['tier']:22s} append {row['append_gb_per_s']:6.2f} GB/s  gather first {row['gather_first_gb_per_s']:6.2f}  "
            f"then {row['gather_gb_per_s']:6.2f} GB/s  same bytes: {row['same']}"
        )
    kept = codecs()
    for row in kept:
        print(
            f"{row['codec']:42s} {row['share']:.3f} of the bytes  encode {row['encode_ms_per_page']:.3f} ms, decode "
            f"{row['decode_ms_per_page']:.3f} ms per block and layer"
        )
    print(f"a day: {simulated}")
    machine.write("block_bank", {"device": options.device, "tiers": rows, "codecs": kept, "day": simulated})
    return 0 if all(row["same"] for row in rows) and simulated["flat"] and simulated["first_minute_exact"] else 1


if __name__ == "__main__":
    sys.exit(main())
