"""The demo of sound: films with the sound that was made, and pictures of real against made."""

from pathlib import Path

import av
import cv2
import pytest
from sound_models import write_model

from pipelines.sound_demo import main, make_sound


def test_the_demo_gives_films_with_sound_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = write_model(tmp_path / "model", columns=8), tmp_path / "out"
    make_sound(out, checkpoint=model, seconds=1.0)
    said = capsys.readouterr().out
    assert "Making sound from the frames alone" in said and said.count("bounces heard within 0.1 s") == 3
    for name in ("ball900000", "ball900001", "ball900002"):
        with av.open(str(out / "film" / f"{name}.mp4")) as film:
            assert [stream.type for stream in film.streams] == ["video", "audio"]
            heard = sum(frame.samples for frame in film.decode(audio=0)) / 22_050
        assert heard == pytest.approx(1.0, abs=0.05)
        assert (out / "wav" / f"{name}.wav").stat().st_size == pytest.approx(2 * 22_050, rel=0.06)
        picture = cv2.imread(str(out / "_sounds" / f"{name}.png"))
        assert picture.shape[1] == 1100 and picture.shape[0] > 2 * 160  # frames, real, made
    assert (out / "_sounds.html").read_text().count("<img") == 3


def test_the_demo_leaves_other_folders_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    assert main([str(tmp_path)]) == 2
    assert "holds other things than a demo" in capsys.readouterr().err
    assert main(["--help"]) == 2 and (tmp_path / "mine.txt").exists()
