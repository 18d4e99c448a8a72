"""An empty path is a mistake, as where a shell variable is not set: it would be the folder that one is in."""

import pytest
from rfp.cli.main import app
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["translate", "b", "a.png", "-o", ""], "'--output' / '-o'"),
        (["translate", "b", "a.png", "", "-o", "out"], "'INPUT'"),
        (["generate", "b", "-o", ""], "'--output' / '-o'"),
        (["export", "run", "-o", ""], "'--output' / '-o'"),
        (["split", "run", "a.png", "-o", ""], "'--output' / '-o'"),
        (["split", "run", "", "-o", "out"], "'INPUT'"),
        *((["evaluate", "b", f"--{name}", ""], f"'--{name}'") for name in ("source", "target", "truth", "classifier")),
        (["export", "run", "-o", "b", "--calibration", ""], "'--calibration'"),
        (["demo", "-o", ""], "'--output' / '-o'"),
        (["train", "-d0", "a.png", "-d1", "a.png", "--runs", ""], "'--runs'"),
    ],
)
def test_an_empty_path_is_a_usage_error_that_names_its_option(tmp_path, monkeypatch, args, named):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2 and f"{named}: is empty; wanted a path" in result.stderr, result.stderr
    assert not list(tmp_path.iterdir())
