"""`rfp demo`, with a training of a few steps: every part of the road runs, and running it again goes on."""

from pathlib import Path

import av
import pytest
from PIL import Image
from rfp.cli.main import app
from typer.testing import CliRunner

SHORT = ["--set", "train_images=24", "--set", "train_batch_size=8", "--set", "train_minibatch_size=8"]
SMALL = ["--set", "velocity_net.model_channels=8", "--set", "velocity_net.ch_mult=[1,2]"]


@pytest.mark.slow
def test_the_demo_trains_exports_and_translates_pictures_and_a_film(tmp_path: Path) -> None:
    command = ["demo", "-o", str(tmp_path / "demo"), *SHORT, *SMALL]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "untouched input" in first.stdout and "ours" in first.stdout
    assert "6 Euler steps" in first.stdout
    with Image.open(tmp_path / "demo" / "gallery.png") as gallery:
        assert min(gallery.size) > 500
    results = tmp_path / "demo" / "translated"
    assert len(list((results / "day").glob("*.png"))) == 32
    with av.open(str(results / "day.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 96
        assert film.streams.audio

    written = {p: p.stat().st_mtime_ns for p in results.rglob("*.*") if p.is_file()}
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert "already trained" in again.stderr
    assert written == {p: p.stat().st_mtime_ns for p in results.rglob("*.*") if p.is_file()}
