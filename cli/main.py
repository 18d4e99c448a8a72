"""The `rfp` command: thin commands; heavy imports stay inside command bodies."""

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..runtime.errors import RfpError
from .demo import demo
from .evaluate import evaluate
from .export import export
from .generate import generate
from .info import info
from .preview import preview
from .reflow import distill, reflow
from .report import one_line
from .split import split
from .train import train
from .translate import translate


class Group(TyperGroup):
    """Shows an error as its message and exits with its code; Typer would print a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RfpError as e:
            message = "\n".join(map(one_line, str(e).splitlines()))
            _complain(message)
            raise typer.Exit(e.exit_code) from e
        except OSError as e:  # a full disk, a folder that was removed meanwhile
            if e.filename is None and e.errno != errno.ENOSPC:
                raise
            where = e.filename or "output"
            _complain(one_line(f"{where}: {e.strerror}; put that right and run the same command again"))
            raise typer.Exit(1) from e
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(130) from None


def _complain(message: str) -> None:
    """Errors go to stderr, as progress does; results go to stdout."""
    from rich.console import Console  # 20 ms to import, as in every command that shows a bar

    Console(stderr=True).print(f"rfp: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


app = typer.Typer(
    cls=Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"rfp {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Learn to turn one kind of picture into another from two folders, without pairs."""


app.command()(train)
app.command()(export)
app.command()(info)
app.command()(translate)
app.command()(evaluate)
app.command()(reflow)
app.command()(distill)
app.command()(split)
app.command()(generate)
app.command()(preview)
app.command()(demo)
