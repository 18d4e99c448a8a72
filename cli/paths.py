"""Options that are paths, of what is written and what is read."""

from pathlib import Path

import typer


def path(text: str | Path) -> Path:
    """A path that is given: "" would be the folder that the command is run in, as where a shell variable is not set."""
    if not str(text):
        raise typer.BadParameter("is empty; wanted a path (. is this folder)")
    return Path(text)
