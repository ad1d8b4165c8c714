"""A picture: which clips of one film each question selected.

One row per question, one column per clip of eight seconds; the darker, the more alike are question and clip. Frames mark the
selected clips, the bars on top the events of the film in their colors.

    python -m benchmarks.videostreaming_figure [--film 1000] [--out docs/images/videostreaming_selection.png]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from models.films import COLORS, make_film, order_questions, questions
from models.videostreaming.evaluate import encode_film, film_features, select
from models.videostreaming.header import SMALL_WEIGHTS
from models.videostreaming.loaders import load_model

CELL, ROW, LEFT, TOP = 12, 20, 320, 44  # px
OUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "videostreaming_selection.png"


def main() -> int:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=int, default=1000, help="seed of the film")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ready, film, rng = load_model(SMALL_WEIGHTS), make_film(arguments.film), np.random.default_rng(3)
    asked = [one for one in questions(film, rng) if one.kind in ("color", "when")] + order_questions(film, rng)[1:]
    frames = ready.config.frames_per_clip
    found = select(ready, encode_film(ready, film_features(ready, film)), [one.text for one in asked])
    clips = -(-film.length // frames)
    image = np.full((TOP + ROW * len(asked) + 8, LEFT + CELL * clips + 8, 3), 255, np.uint8)
    for event in film.events:
        left, right = (LEFT + round(CELL * at / frames) for at in (event.start, event.stop))
        bgr = tuple(reversed(COLORS[event.color]))
        cv2.rectangle(image, (left, TOP - 12), (max(right, left + 3), TOP - 4), bgr, cv2.FILLED)
        _write(image, event.shape, left - 8, TOP - 18)
    for row, (one, (places, scores_K)) in enumerate(zip(asked, found, strict=True)):
        top = TOP + ROW * row
        _write(image, f"{one.text} {one.answer}", 6, top + 14)
        shades = (255 - 200 * np.clip(scores_K.numpy(), 0, 1)).astype(int)
        for k in range(clips):
            corner = (LEFT + CELL * k, top + 2)
            cv2.rectangle(image, corner, (corner[0] + CELL - 2, top + ROW - 3), [int(shades[k])] * 3, cv2.FILLED)
            if k in places:
                cv2.rectangle(image, corner, (corner[0] + CELL - 2, top + ROW - 3), (30, 30, 220), 2)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(arguments.out), image)
    print("written:", arguments.out)
    return 0


def _write(image: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (40, 40, 40), 1, cv2.LINE_AA)


if __name__ == "__main__":
    sys.exit(main())
