"""`rfp preview`: an exported page on this computer's own address."""

from pathlib import Path
from typing import Annotated

import typer


def preview(
    site: Annotated[Path, typer.Argument(help="Folder that `rfp export --format web` wrote.")],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 takes any that is free; 8000, or else any, if not given.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser too.")] = False,
) -> None:
    """Serve an exported page on this computer only, until Ctrl-C.

    Any static server will do for the page; this one sends the headers with which browsers compute on several threads.
    """
    from .site_server import serve  # http.server takes 15 ms to import

    server = serve(site, port)
    url = f"http://localhost:{server.server_port}/"
    typer.echo(f"{site}: {url} (Ctrl-C ends it)")
    if browser:
        import webbrowser

        webbrowser.open(url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("", err=True)
    finally:
        server.server_close()
