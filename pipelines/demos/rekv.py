"""Questions about films of ten minutes: from the frames that match the question, and from as many others.

The small model of the package answers about rendered films; every mode gets the same number of frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from connectors.charts import sheet, write_picture
from pipelines.demos.film_frames import film_frames
from pipelines.demos.runner import Say, Shown, Worth

__all__ = ["show"]

_FILMS = range(910_000, 910_004)  # that no training draws
_MODES = {
    "recent": "the newest frames",
    "uniform": "frames spread evenly over the film",
    "memory": "the frames that match the question",
}
_SHOWN, _EACH = 4, 6
"""Questions in the picture, and frames of each."""


def show(out: Path, say: Say) -> Shown:
    """Run the demo in a folder."""
    import torch

    from models.films import make_film, questions, write_mp4
    from models.rekv.evaluate import ask_film, film_features, film_quality
    from models.rekv.header import SMALL_WEIGHTS
    from models.rekv.loaders import load_model
    from models.rekv.small import load_small

    films = [make_film(seed) for seed in _FILMS]
    say(f"Rendering {len(films)} films of ten minutes with five short events each")
    write_mp4(films[0], out / "film.mp4")
    config = load_small(SMALL_WEIGHTS).rekv
    model = load_model(SMALL_WEIGHTS, config)
    say(f"Answering questions about them from {config.retrieve_frames} of their {films[0].length} frames, chosen in three ways")
    quality = film_quality(model, config, films)
    say("Drawing which frames the memory brought back")
    film = films[0]
    asked = questions(film, np.random.default_rng([film.seed, 3]))[:: max(1, 20 // _SHOWN)][:_SHOWN]
    answers = ask_film(model, config, film_features(model, film), [one.text for one in asked])
    rows = []
    for one, answer in zip(asked, answers, strict=True):
        said = model.tokenizer.decode(answer.tokens) if model.tokenizer else ""
        score_N = torch.stack([scores for scores in answer.scores if scores is not None]).mean(0)
        best = sorted(score_N.topk(_EACH).indices.tolist())
        rows.append((f"{one.text}\nsays: {said}", film_frames(film, best)))
    write_picture(out / "picture.png", sheet(rows, height=72, left=260))
    accuracy = quality.accuracy
    return Shown(
        title=f"Right answers to {quality.questions} questions, from {config.retrieve_frames} frames each",
        columns=("answered from", "right"),
        rows=[
            *((words, f"{accuracy[mode]:.0%}") for mode, words in _MODES.items()),
            ("what the memory gained", f"{accuracy['memory'] - max(accuracy['recent'], accuracy['uniform']):+.0%}"),
        ],
        worth=Worth(
            "right answers about ten minutes of film",
            f"{accuracy['uniform']:.0%} from {config.retrieve_frames} frames spread evenly",
            f"{accuracy['memory']:.0%} from the {config.retrieve_frames} that match",
        ),
        facts=[f"frames of the event that the memory brought back: {quality.recall:.0%}"],
        look=[
            (f"{out / 'picture.png'}", "questions, answers, and the frames they rest on"),
            (f"{out / 'film.mp4'}", "the film"),
        ],
        next=[
            f"run rekv_replay --set clips.path={out / 'film.mp4'}",
            'ask rekv_replay "when did the circle appear?" --stream film    (from another terminal)',
        ],
    )
