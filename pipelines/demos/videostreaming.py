"""Questions about films of ten minutes: from a few memories of clips that are selected by the question, and from others.

The small model of the package answers about rendered films; every mode gets the same number of video tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from connectors.charts import sheet, write_picture
from pipelines.demos.film_frames import film_frames
from pipelines.demos.runner import Say, Shown, Worth

__all__ = ["show"]

_FILMS = range(920_000, 920_004)  # that no training draws
_MODES = {
    "last": "memories of the newest clips",
    "uniform": "memories of clips spread evenly",
    "memory": "memories that match the question",
}
_SHOWN, _EACH = 4, 4
"""Questions in the picture, and frames of each clip."""


def show(out: Path, say: Say) -> Shown:
    """Run the demo in a folder."""
    from models.films import make_film, questions, write_mp4
    from models.videostreaming.evaluate import ask_film, encode_film, film_features, film_quality, select
    from models.videostreaming.header import SMALL_WEIGHTS
    from models.videostreaming.loaders import load_model

    films = [make_film(seed) for seed in _FILMS]
    say(f"Rendering {len(films)} films of ten minutes with five short events each")
    write_mp4(films[0], out / "film.mp4")
    ready = load_model(SMALL_WEIGHTS)
    length, count = ready.config.frames_per_clip, ready.config.select_clips
    clips = -(-films[0].length // length)
    say(f"Answering questions about them from {count} of their {clips} clips, chosen in three ways")
    quality = film_quality(ready, films, tuple(_MODES))
    say("Drawing which clips were selected")
    film = films[0]
    asked = questions(film, np.random.default_rng([film.seed, 3]))[:: max(1, 20 // _SHOWN)][:_SHOWN]
    encoded = encode_film(ready, film_features(ready, film))
    rows = []
    texts = [one.text for one in asked]
    said = ask_film(ready, film, texts)
    for text, (places, _), (answer, _) in zip(texts, select(ready, encoded, texts), said, strict=True):
        spread = (np.arange(_EACH) * length // _EACH).tolist()
        seen = [min(k * length + place, film.length - 1) for k in places for place in spread]
        rows.append((f"{text}\nsays: {answer}", film_frames(film, seen)))
    write_picture(out / "picture.png", sheet(rows, height=72, left=260))
    accuracy = quality.accuracy
    return Shown(
        title=f"Right answers to questions about one event ({quality.questions} questions, with those about order)",
        columns=("answered from", "right", "event among the clips"),
        rows=[
            *((words, f"{accuracy[mode]:.0%}", f"{quality.recall[mode]:.0%}") for mode, words in _MODES.items()),
            ("what selecting gained", f"{accuracy['memory'] - max(accuracy['last'], accuracy['uniform']):+.0%}", ""),
        ],
        worth=Worth(
            "right answers about ten minutes of film",
            f"{accuracy['uniform']:.0%} from {count} clips spread evenly",
            f"{accuracy['memory']:.0%} from the {count} that match",
        ),
        look=[
            (f"{out / 'picture.png'}", "questions, answers, and four frames of each clip that was selected"),
            (f"{out / 'film.mp4'}", "the film"),
        ],
        next=[
            f"run videostreaming_replay --set clips.path={out / 'film.mp4'}",
            'ask videostreaming_replay "when did the circle appear?" --stream film    (from another terminal)',
        ],
    )
