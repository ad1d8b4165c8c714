"""The demo of sound: films with the sound that was made, and pictures of real against made."""

from pathlib import Path

import av
import cv2
import pytest
from sound_models import write_model

from pipelines.demos.specvqgan import make_sound
from pipelines.viewing.view import view


@pytest.mark.heavy
def test_the_demo_gives_films_with_sound_and_pictures(tmp_path: Path) -> None:
    model, out = write_model(tmp_path / "model", columns=8), tmp_path / "out"
    said: list[str] = []
    clips, found = make_sound(out, said.append, checkpoint=model, seconds=1.0)
    assert "Making sound from the frames alone" in said and len(clips) == 3 and found.bounces > 0
    out = out / "seen"
    view(out, video=out / "videos")
    for name in ("ball900000", "ball900001", "ball900002"):
        with av.open(str(out / "film" / f"{name}.mp4")) as film:
            assert [stream.type for stream in film.streams] == ["video", "audio"]
            heard = sum(frame.samples for frame in film.decode(audio=0)) / 22_050
        assert heard == pytest.approx(1.0, abs=0.05)
        assert (out / "wav" / f"{name}.wav").stat().st_size == pytest.approx(2 * 22_050, rel=0.06)
        picture = cv2.imread(str(out / "_sounds" / f"{name}.png"))
        assert picture.shape[1] == 1100 and picture.shape[0] > 2 * 160  # frames, real, made
    assert (out / "_sounds.html").read_text().count("<img") == 3
