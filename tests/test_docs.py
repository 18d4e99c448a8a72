"""What README, help texts and presets say is true."""

import re
import shlex
from pathlib import Path

import pytest
from rfp.cli.main import app
from rfp.train.config import table
from rfp.train.reading import presets
from typer.main import get_command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def test_the_readme_holds_the_config_table_as_generated() -> None:
    assert table() in README, "run `make docs`"


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("line", re.findall(r"^    (rfp [^\n#]+)", README, re.MULTILINE))
def test_every_command_in_the_readme_is_understood(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    COMMANDS[name].make_context(name, arguments, resilient_parsing=False)


def test_every_option_named_in_the_readme_exists() -> None:
    known = {option for command in COMMANDS.values() for p in command.params for option in p.opts}
    known |= {"--help", "--nproc-per-node"}  # the last is torchrun's
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", README)) <= known


def test_the_readme_names_every_preset() -> None:
    assert all(f"`{name}`" in README for name in presets())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    assert COMMANDS[name].help
    assert all(getattr(p, "help", None) for p in COMMANDS[name].params if p.name != "help")
