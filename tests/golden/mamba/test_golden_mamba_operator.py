"""Golden: the operator's own detector and banks reproduce the recorded videos, with the recorded draws handed in.

Banks of the published code are lists that get reordered; ours overwrite in place. ``RecordedDraws`` keeps, per bank, which of
our positions each entry of the published list stands at, and turns recorded permutations into positions.
"""

# N rows of a bank, K keys, C channels

from pathlib import Path
from typing import Any

import mamba_cases
import numpy as np
import torch
from golden_cases import golden, read_json, read_npz, sibling
from mamba_cases import assert_close, assert_same_boxes, prepared, tiny_model
from torch import Tensor

from models.mamba.model import Detections, Mamba
from operators.banks import stream_seed
from operators.mamba.config import MambaOptions
from operators.mamba.detector import Frames, StreamDetector
from operators.mamba.rules import Cells

STREAM = "video"


class RecordedDraws:
    """Stands in for the sampler of all banks of one stream. Banks are told apart by their seeds."""

    def __init__(self, limits: dict[str, tuple[int, int]], written: dict[str, int]) -> None:
        self.limits = limits  # bank -> (key_length, max_length)
        self.written = written  # bank -> rows of a full write
        self.bank_of_seed = {stream_seed(0, STREAM, bank): bank for bank in limits}
        self.order: dict[str, list[int]] = {bank: [] for bank in limits}
        self.drawn: dict[tuple[str, str], np.ndarray] = {}

    def expect(self, arrays: dict[str, np.ndarray], frame: int) -> None:
        """Assign the permutations of a frame: pixel read, stage by stage read and replace, pixel replace."""
        self.drawn = {}
        stages = [bank for bank in self.limits if bank != "pixel"]
        turns = [(bank, kind) for bank in stages for kind in ("read", "replace")]
        if "pixel" in self.limits:
            turns = [("pixel", "read"), *turns, ("pixel", "replace")]
        recorded = mamba_cases.draws(arrays, frame)
        for bank, kind in turns:
            key_length, max_length = self.limits[bank]
            if len(self.order[bank]) >= (key_length if kind == "read" else max_length):
                self.drawn[bank, kind] = next(recorded)
        assert next(recorded, None) is None, f"frame {frame}: a recorded draw was not used"

    def __call__(self, fill_B: Tensor, k: int, *, seed_B: Tensor, step_B: Tensor, purpose: int) -> Tensor:
        bank = self.bank_of_seed[int(seed_B[0])]
        order = self.order[bank]
        assert int(fill_B[0]) == len(order)
        if purpose % 3 == 0:
            positions = [order[i] for i in self.drawn[bank, "read"][:k]]
        else:
            permutation, number = self.drawn[bank, "replace"], self.written[bank]
            positions = [order[i] for i in permutation[-number:]]
            self.order[bank] = [order[i] for i in permutation[:-number]] + positions
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
    keys, values = attention.project(torch.from_numpy(wanted))
    stored = detector.banks[index].rows
    for got, expected in ((stored["key"], keys), (stored["value"], values)):
        assert_close(got[0, recorded.order[bank]].flatten(1), expected.detach().numpy(), f"{what} {bank}")


def as_array(found: Detections, scale: float) -> np.ndarray:
    return torch.cat([found.boxes_D4 / scale, found.scores_D[:, None], found.labels_D[:, None]], dim=1).numpy()


def look(detector: StreamDetector, images: np.ndarray, settings: dict[str, Any]) -> Frames:
    image = prepared(images, settings)
    return detector.look(image.pixels_BCHW, image.sizes_B2)


def run_frame(detector: StreamDetector, arrays: dict[str, np.ndarray], settings: dict[str, Any], t: int) -> Detections:
    slot = torch.tensor([0])
    frames = look(detector, arrays["frames"][t : t + 1], settings)
    if t == 0:
        references = look(detector, arrays["refs"], settings)
        found = detector.start(slot, frames, references, torch.zeros(len(arrays["refs"]), dtype=torch.int64))
    else:
        found = detector.step(slot, frames, write_B=torch.tensor([True]))
    assert found.finite_B == [True]
    return found.detections[0]


@golden("mamba", ".npz", *mamba_cases.VIDEO)
@torch.inference_mode()
def test_operator_reproduces_the_instance_level_video(path: Path):
    arrays = read_npz(path)
    settings = read_json(sibling(path, "tiny_video", "tiny_config", ".json"))
    model = tiny_model(settings, read_npz(sibling(path, "tiny_video", "tiny_state_dict", ".npz")))
    banks = [f"instance{i}" for i in range(model.config.stages)]
    limit = (settings["key_len"], settings["max_len"])
    recorded = RecordedDraws(dict.fromkeys(banks, limit), dict.fromkeys(banks, settings["topk"]))
    detector = StreamDetector("test", model, options(settings), torch.device("cpu"), sampler=recorded)
    detector.open(0, STREAM)
    for t in range(len(arrays["frames"])):
        if t:
            recorded.expect(arrays, t)
        recorded.written = dict.fromkeys(banks, min(settings["topk"], len(arrays[f"f{t}_proposals"])))
        found = run_frame(detector, arrays, settings, t)
        recorded.appended(detector)
        assert_same_boxes(as_array(found, settings.get("scale", 1.0)), arrays[f"f{t}_det"], f"frame {t} detections")
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
    recorded = RecordedDraws(limits, dict.fromkeys(banks, settings["topk"]))
    cells: list[np.ndarray] = []  # what the coming writes to the pixel bank store, in order

    def recorded_cells(*args: Any, **kwargs: Any) -> Cells:
        index = cells.pop(0)
        recorded.written["pixel"] = len(index)
        return Cells(torch.from_numpy(index)[None], torch.tensor([len(index)]))

    detector = StreamDetector("test", model, options(settings), torch.device("cpu"), sampler=recorded, cells=recorded_cells)
    detector.open(0, STREAM)
    images = len(arrays["refs"]) + 1
    for t in range(len(arrays["frames"])):
        cells += [arrays[f"f{t}_written_cells"]]
        if t == 0:
            # The first frame's draws belong to banks that its own start has filled: note that filling before the draws.
            cells[:0] = [arrays[f"init{i}_cells"] for i in range(images)]
            start_rows = sum(len(arrays[f"init{i}_cells"]) for i in range(images))
            recorded.order |= {"pixel": list(range(start_rows))}
            rows = len(arrays["f0_ins_bank0"]) - settings["topk"]
            recorded.order |= {bank: list(range(rows)) for bank in banks}
        recorded.expect(arrays, t)
        found = run_frame(detector, arrays, settings, t)
        assert not cells
        recorded.appended(detector)
        assert_same_boxes(as_array(found, 1.0), arrays[f"f{t}_det"], f"frame {t} detections")
        assert_bank(detector, recorded, "pixel", arrays[f"f{t}_pix_bank"], f"frame {t}")
        for i, bank in enumerate(banks):
            assert_bank(detector, recorded, bank, arrays[f"f{t}_ins_bank{i}"], f"frame {t}")
