"""Golden: the operator's own detector and banks reproduce the recorded videos, with the recorded draws handed in.

Banks of the published code are lists that get reordered; ours overwrite in place. ``RecordedDraws`` keeps, per bank, which of
our positions each entry of the published list stands at, and turns recorded permutations into positions.
"""

# N rows of a bank, K keys, C channels

from collections import defaultdict, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mamba_cases
import numpy as np
import torch
from golden_cases import golden, read_json, read_npz, sibling
from mamba_cases import assert_close, assert_same_boxes, in_order_of, prepared, scale_xyxy, tiny_model
from torch import Tensor

from models.mamba.model import Detections, Mamba
from operators.banks import stream_seed
from operators.mamba.config import MambaOptions
from operators.mamba.detector import Frames, StreamDetector
from operators.mamba.rules import Cells

STREAM = "video"


Turn = tuple[str, str, int]
"""Bank, "read", "write" or "start" (all rows at once, no draw), and the rows of a write."""


class RecordedDraws:
    """Stands in for the sampler of all banks of one stream. Banks are told apart by their seeds."""

    def __init__(self, limits: dict[str, tuple[int, int]]) -> None:
        self.limits = limits  # bank -> (key_length, max_length)
        self.bank_of_seed = {stream_seed(0, STREAM, bank): bank for bank in limits}
        self.order: dict[str, list[int]] = {bank: [] for bank in limits}
        self.drawn: dict[tuple[str, str], deque[tuple[np.ndarray, int]]] = defaultdict(deque)

    def expect(self, arrays: dict[str, np.ndarray], frame: int, turns: Iterable[Turn]) -> None:
        """Assign the permutations of a frame to the turns in which the published code drew them."""
        assert not any(self.drawn.values()), f"frame {frame - 1}: a recorded draw was not used"
        recorded = mamba_cases.draws(arrays, frame)
        size = {bank: len(order) for bank, order in self.order.items()}
        for bank, kind, rows in turns:
            key_length, max_length = self.limits[bank]
            if (kind == "read" and size[bank] >= key_length) or (kind == "write" and rows and size[bank] >= max_length):
                permutation = next(recorded, None)
                assert permutation is not None, f"frame {frame}: no draw is recorded for the {kind} of {bank}"
                assert len(permutation) == size[bank], f"frame {frame}: {kind} of {bank}"
                if kind == "write" or len(permutation) > key_length:  # exactly that many rows are all read, without a draw
                    self.drawn[bank, kind].append((permutation, rows))
            if kind == "write" and size[bank] >= max_length:
                size[bank] = max(size[bank], rows)
            elif kind != "read":
                size[bank] += rows
        assert next(recorded, None) is None, f"frame {frame}: more draws are recorded than were made"

    def __call__(self, fill_B: Tensor, k: int, *, seed_B: Tensor, step_B: Tensor, purpose: int) -> Tensor:
        bank = self.bank_of_seed[int(seed_B[0])]
        order, fill = self.order[bank], int(fill_B[0])
        order += range(len(order), fill)  # what was appended since the last draw
        if purpose % 3 == 0:
            permutation, _ = self.drawn[bank, "read"].popleft()
            positions = [order[i] for i in permutation[:k]]
        else:
            permutation, rows = self.drawn[bank, "write"].popleft()
            positions = [order[i] for i in permutation[-rows:]]
            # Of a write of more rows than the bank holds the first are appended.
            self.order[bank] = [order[i] for i in permutation[:-rows]] + list(range(fill, rows)) + positions
        return torch.tensor([positions + [0] * (k - len(positions))])

    def appended(self, detector: StreamDetector) -> None:
        """Note what the last step appended."""
        for bank in detector.banks:
            order = self.order[bank.name]
            order += range(len(order), int(bank.fill(torch.tensor([0]))[0]))


def options(settings: dict[str, Any]) -> MambaOptions:
    pixel = {}
    if "pmax" in settings:
        pixel = {
            "pixel_max_length": settings["pmax"],
            "pixel_key_length": settings["pkey"],
            "pixel_score": settings["thr"],
            "pixel_per_box": settings["ppb"],
            "pixel_per_frame": settings["ppf"],
            "pixel_fallback": settings["fb"],
        }
    return MambaOptions(
        max_length=settings["max_len"],
        key_length=settings["key_len"],
        write_topk=settings["topk"],
        max_streams=1,
        compat="official",
        init="spread",
        **pixel,
    )


def assert_bank(detector: StreamDetector, recorded: RecordedDraws, bank: str, wanted: np.ndarray, what: str) -> None:
    """Compare a bank of projected rows with the published bank of raw rows, in the published order."""
    index = [b.name for b in detector.banks].index(bank)
    attention = detector.model.pixel if bank == "pixel" else detector.model.head.attention[index]
    expected = torch.cat(attention.project(torch.from_numpy(wanted)), dim=1).numpy()
    stored = detector.banks[index].rows
    order = recorded.order[bank]
    got = torch.cat([stored[name][0, order].flatten(1) for name in ("key", "value")], dim=1)
    moved = in_order_of(expected, got)
    recorded.order[bank] = [order[i] for i in moved]
    assert_close(got[moved], expected, f"{what} {bank}")


def as_array(found: Detections, scale: np.ndarray | float) -> np.ndarray:
    return np.concatenate([found.boxes_D4.numpy() / scale, found.scores_D[:, None], found.labels_D[:, None]], axis=1)


def look(detector: StreamDetector, images: np.ndarray, settings: dict[str, Any]) -> Frames:
    image = prepared(images, settings)
    return detector.look(image.pixels_BCHW, image.sizes_B2)


def run_frame(detector: StreamDetector, arrays: dict[str, np.ndarray], settings: dict[str, Any], t: int) -> Detections:
    slot = torch.tensor([0])
    frames = look(detector, arrays["frames"][t : t + 1], settings)
    if t == 0:
        number = len(arrays["refs"])
        references = look(detector, arrays["refs"], settings) if number else None
        found = detector.start(slot, frames, references, torch.zeros(number, dtype=torch.int64))
    else:
        found = detector.step(slot, frames, write_B=torch.tensor([True]))
    assert found.finite_B == [True]
    return found.detections[0]


def rows_written(model: Mamba, map_BCHW: Tensor, settings: dict[str, Any]) -> list[int]:
    """Return how many proposals of each map go to the instance banks; the map is the one that the pixel level enhances."""
    feature = map_BCHW if settings["position"] == "neck" else model.neck(map_BCHW)
    size = torch.tensor([[settings["H"], settings["W"]]], dtype=torch.float32)
    return model.propose(feature, size.expand(len(map_BCHW), 2)).valid_BN.sum(1).clamp_max(settings["topk"]).tolist()


@golden("mamba", ".npz", *mamba_cases.VIDEO)
@torch.inference_mode()
def test_operator_reproduces_the_instance_level_video(path: Path):
    arrays = read_npz(path)
    settings = read_json(sibling(path, "tiny_video", "tiny_config", ".json"))
    model = tiny_model(settings, read_npz(sibling(path, "tiny_video", "tiny_state_dict", ".npz")))
    banks = [f"instance{i}" for i in range(model.config.stages)]
    recorded = RecordedDraws(dict.fromkeys(banks, (settings["key_len"], settings["max_len"])))
    detector = StreamDetector("test", model, options(settings), torch.device("cpu"), sampler=recorded)
    detector.open(0, STREAM)
    for t in range(len(arrays["frames"])):
        written = min(settings["topk"], len(arrays[f"f{t}_proposals"]))
        turns = [(bank, *turn) for bank in banks for turn in (("read", 0), ("write", written))]
        recorded.expect(arrays, t, turns if t else ())
        found = run_frame(detector, arrays, settings, t)
        recorded.appended(detector)
        assert_same_boxes(as_array(found, scale_xyxy(settings)), arrays[f"f{t}_det"], f"frame {t} detections")
        for i, bank in enumerate(banks):
            assert_bank(detector, recorded, bank, arrays[f"f{t}_bank{i}"], f"frame {t}")


@golden("mamba", ".npz", *mamba_cases.PIXEL_VIDEO)
@torch.inference_mode()
def test_operator_reproduces_the_pixel_and_instance_level_video(path: Path):
    arrays = read_npz(path)
    settings = read_json(sibling(path, "tiny_pixel_video", "tiny_pixel_config", ".json"))
    weights = {name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")}
    model: Mamba = tiny_model(settings, weights)
    banks = [f"instance{i}" for i in range(model.config.stages)]
    limits = dict.fromkeys(banks, (settings["key_len"], settings["max_len"])) | {"pixel": (settings["pkey"], settings["pmax"])}
    recorded = RecordedDraws(limits)
    cells: deque[np.ndarray] = deque()  # what the coming writes to the pixel bank store, in order

    def recorded_cells(*args: Any, **kwargs: Any) -> Cells:
        index = cells.popleft()
        return Cells(torch.from_numpy(index)[None], torch.tensor([len(index)]))

    detector = StreamDetector("test", model, options(settings), torch.device("cpu"), sampler=recorded, cells=recorded_cells)
    detector.open(0, STREAM)
    for t in range(len(arrays["frames"])):
        turns: list[Turn] = []
        if t == 0:  # the start comes first: all rows of all images, and their cells image by image, in draws of frame 0
            cells += [arrays[f"init{i}_cells"] for i in range(len(arrays["refs"]) + 1)]
            plain = [
                look(detector, images, settings).map_BCHW for images in (arrays["refs"], arrays["frames"][:1]) if len(images)
            ]
            rows = sum(rows_written(model, torch.cat(plain), settings))
            turns += [(bank, "start", rows) for bank in banks] + [("pixel", "write", len(index)) for index in cells]
        cells += [arrays[f"f{t}_written_cells"]]
        (written,) = rows_written(model, torch.from_numpy(arrays[f"f{t}_map_enhanced"]), settings)
        turns += [("pixel", "read", 0)]
        turns += [(bank, *turn) for bank in banks for turn in (("read", 0), ("write", written))]
        turns += [("pixel", "write", len(cells[-1]))]
        recorded.expect(arrays, t, turns)
        found = run_frame(detector, arrays, settings, t)
        assert not cells
        recorded.appended(detector)
        assert_same_boxes(as_array(found, 1.0), arrays[f"f{t}_det"], f"frame {t} detections")
        assert_bank(detector, recorded, "pixel", arrays[f"f{t}_pix_bank"], f"frame {t}")
        for i, bank in enumerate(banks):
            assert_bank(detector, recorded, bank, arrays[f"f{t}_ins_bank{i}"], f"frame {t}")
